"""Open exported text encoders in transformers, and keep what it says in `golden_texts.json`.

    python tests/export/golden_texts.py write FOLDER         # needs nml_jax: exports runs of random weights
    python tests/export/golden_texts.py open FOLDER [FILE]   # needs torch and transformers alone

The first step also writes the tokens that nml_jax reads and the features that it computes. The second one loads every
folder, and fails if a tensor that the library holds differs by a bit, a token or type of a text or pair differs, or a
feature differs by more than BAR. The suite compares its own folders with the file.
"""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_suffix(".json")
BAR = 5e-6
TEXTS = [("hello world",), ("A",), ("hello", "in the text"), ("a text that is longer than twelve tokens, by far more",)]
SIZES = {"model.dim": 16, "model.depth": 2, "model.heads": 2, "model.hidden": 24, "model.context": 20,
         "texts.length": 12, "data.source": "texts"}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "bert": SIZES | {"model.name": "bert", "model.pool": "mean"},
    "bert_pooler": SIZES | {"model.name": "bert", "model.pool": "pooler", "model.activation": "gelu_tanh"},
    "bert_own": SIZES | {"model.name": "bert", "model.pool": "cls", "model.epsilon": 1e-6},
    "roberta": SIZES | {"model.name": "roberta", "model.pool": "cls"},
    "gpt2": SIZES | {"model.name": "gpt2", "model.pool": "last"},
}


def choose_tokenizer(case: str, folder: Path) -> Path:
    """Write the tokenizer of a case, as it is published or as nml_jax.tokenizer trains it, and return its place."""
    sys.path.insert(0, str(ROOT))
    if case == "bert_own":
        from nml_jax.data.text.tokenizer import train

        path = folder / "own.json"
        path.write_text(train([" ".join(text) for text in TEXTS] * 3, 540))
        return path
    golden = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "data" / "text" / "golden_folders.py")))
    family = case.partition("_")[0]
    (folder / family).mkdir(exist_ok=True)
    golden.write_folder(family, folder / family)
    return folder / family


def make_case(case: str, folder: Path) -> dict[str, Any]:
    """Return the keys of a case, with its tokenizer."""
    from nml_jax.data.text.folders import TextTokenizer

    place = choose_tokenizer(case, folder)
    return CASES[case] | {"texts.tokenizer": str(place), "model.vocab": TextTokenizer(place, 12).size}


def write(folder: Path) -> None:
    """Export a run of random weights for each case, with our tokens and features."""
    sys.path.insert(0, str(ROOT))
    from nml_jax import settings
    from nml_jax.data.text.batches import load_tokenizer
    from nml_jax.export.__main__ import main
    from nml_jax.training.pretrained import load_model
    from tests.scenes import leaving

    folder.mkdir(parents=True)
    for case in CASES:
        run = leaving.make_run(folder / "runs" / case / "noise=0.3,seed=0", **make_case(case, folder))
        if main([str(run), str(folder / f"out_{case}")]):
            raise SystemExit(f"{case} was not exported")
        loaded = load_model(run)
        table = load_tokenizer(settings.from_json(loaded.meta["config"]), loaded.model)(TEXTS)
        batch = table.make_batch(np.arange(len(TEXTS)), len(TEXTS), 12)
        outputs, _ = loaded.model.apply(loaded.params, {}, batch, train=False, key=None)
        save_file({**batch, "features": np.asarray(outputs["features"])}, folder / f"{case}.safetensors")


def open_folder(folder: Path, case: str) -> dict[str, Any]:
    """Open one folder in transformers and return what is kept."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    out = folder / f"out_{case}"
    model, about = AutoModel.from_pretrained(out, output_loading_info=True)
    tokenizer, ours = AutoTokenizer.from_pretrained(out), load_file(folder / f"{case}.safetensors")
    missing = {name for name in about["missing_keys"] if not name.startswith("pooler.")}
    if missing or about["unexpected_keys"] or about["mismatched_keys"]:
        raise SystemExit(f"{case}: {about}")
    tensors, held = load_file(out / "model.safetensors"), model.state_dict()
    for name, x in tensors.items():
        if held[name].numpy().tobytes() != x.tobytes():
            raise SystemExit(f"{case}: {name} differs")
    worst = 0.0
    for row, text in enumerate(TEXTS):
        found = tokenizer(*text, truncation="longest_first", max_length=12, return_tensors="pt")
        length = int(ours["length"][row])
        if found["input_ids"][0].tolist() != ours["tokens"][row, :length].tolist():
            raise SystemExit(f"{case}: tokens of {text} are {found['input_ids'][0].tolist()}")
        if "token_type_ids" in found:
            types = (np.arange(length) >= ours["second"][row]).astype(int).tolist()
            if found["token_type_ids"][0].tolist() != types:
                raise SystemExit(f"{case}: types of {text} are {found['token_type_ids'][0].tolist()}")
        with torch.no_grad():
            result = model.eval()(**found)
        last, how = result.last_hidden_state[0], CASES[case]["model.pool"]
        pooled = (result.pooler_output[0] if how == "pooler" else last.mean(0) if how == "mean" else
                  last[0 if how == "cls" else -1]).numpy()  # fmt: skip
        worst = max(worst, float(np.abs(pooled - ours["features"][row]).max()))
    if worst > BAR:
        raise SystemExit(f"{case}: features differ by {worst}")
    config = json.loads((out / "config.json").read_text())
    keys = {name: "x".join(map(str, x.shape)) for name, x in sorted(tensors.items())}
    return {"config": config, "keys": keys, "difference": worst, "files": sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())}  # fmt: skip


def main(verb: str, folder: str, file: str = str(FILE)) -> None:
    if verb == "write":
        return write(Path(folder))
    golden = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "models" / "weights" / "golden.py")))
    golden.timm()  # defines what torchvision may lack, which transformers imports
    import torch
    import transformers

    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    cases = {case: open_folder(Path(folder), case) for case in CASES}
    Path(file).write_text(json.dumps({"versions": versions, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Compare the features of a BERT, from texts to vectors, with PyTorch's, and count padding and compilations.

    python benchmarks/language.py FOLDER DATA [--repeats=5] [--rows=0] [--torch-python=PATH] [--write]

FOLDER is a sentence-transformers BERT as it is downloaded, such as all-MiniLM-L6-v2. DATA is a folder of GLUE's sets:
RTE/dev.tsv and SST-2/dev.tsv are encoded. Ours is what the stage extract runs: texts sorted by length, in buckets, one
program for each. PyTorch, in a process of its own (--torch-python, default: this one), runs transformers' model under
inference_mode on the same tokens, sorted by length, each batch of 64 padded to its longest text. Both pool by the mean.
They take turns, and start with the tokens made; compilations are not in the rounds. Both are pinned to the same core,
and what is compared is CPU time. The vectors must agree to 1e-5. --rows cuts the sets.

For every dev set in DATA: padded over real tokens. Last, the stage extract on RTE a second time, from its banks; not
with --rows.
"""

import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Opponent, import_torch, make_parser, pin_to_a_core, print_head, serve, write_results

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = Path(__file__).parent / "results" / "language.json"
BATCH, LENGTH, NEEDS = 64, 128, "torch and transformers"
# Folder and file of each dev set, and the columns of its texts.
SETS: dict[str, tuple[str, tuple[int, ...]]] = {
    "RTE": ("dev.tsv", (1, 2)),
    "SST-2": ("dev.tsv", (0,)),
    "CoLA": ("dev.tsv", (3,)),
    "QNLI": ("dev.tsv", (1, 2)),
    "WNLI": ("dev.tsv", (1, 2)),
    "STS-B": ("sts-dev.csv", (5, 6)),
    "MRPC": ("val.tsv", (3, 4)),
    "SNLI": ("validation.tsv", (0, 1)),
}
TIMED = ("RTE", "SST-2")


def describe_model(folder: Path) -> str:
    """Return what a folder's config and weights are."""
    about = json.loads((folder / "config.json").read_bytes())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    name = about.get("_name_or_path") or about["model_type"]
    return f"{name}, {about['num_hidden_layers']} × {about['hidden_size']}, weights of SHA-256 {digest[:16]}"


def read_texts(data: Path, name: str) -> list[tuple[str, ...]]:
    """Return the texts of a dev set."""
    file, columns = SETS[name]
    lines = (data / name / file).read_text("utf-8-sig").split("\n")
    rows = [line.removesuffix("\r").split("\t") for line in lines if line]
    rows = rows if name in ("CoLA", "STS-B") else rows[1:]
    return [tuple(row[column] for column in columns) for row in rows]


class Ours:
    """Our encoder, as the stage extract runs it."""

    def __init__(self, folder: Path):
        import jax

        from configs import text
        from nml_jax import runtime
        from nml_jax.assembly.encode import compile_encoder
        from nml_jax.data.text.folders import TextTokenizer
        from nml_jax.models import build
        from nml_jax.training import pretrained

        self.config = text.get_config(str(folder))
        self.mesh = runtime.make_mesh()
        model = build(self.config.model, num_classes=1, image_size=8)
        weights = pretrained.load_weights(str(folder), self.config, model, jax.random.key(0), head_for="features")
        self.weights = runtime.move_to_mesh(weights, self.mesh)
        self.encode = compile_encoder(model, ("features",), self.mesh)
        self.tokenizer = TextTokenizer(folder, LENGTH)
        self.put = runtime.put_batch(self.mesh)

    def run(self, table: Any) -> np.ndarray:
        """Return the features of a table of tokens, in its order."""
        import jax

        from nml_jax.data.text.batches import list_buckets, plan_batches

        out = np.empty((len(table.lengths), self.config.model.dim), np.float32)
        for window in plan_batches(table.lengths, BATCH, list_buckets(self.config)):
            for rows, size, width in window:
                features = self.encode(*self.weights, self.put(table.make_batch(rows, size, width)))["features"]
                out[rows] = jax.device_get(features)[: len(rows)]
        return out


def measure_padding(config: Any, lengths: np.ndarray) -> tuple[float, set[tuple[int, int]]]:
    """Return padded over real tokens, and the shapes of batches, each of which is compiled once."""
    from nml_jax.data.text.batches import list_buckets, plan_batches

    parts = [part for window in plan_batches(lengths, BATCH, list_buckets(config)) for part in window]
    shapes = [(part.size, part.width) for part in parts]
    return sum(size * width for size, width in shapes) / lengths.sum(), set(shapes)


def measure_second_extraction(folder: Path, data: Path) -> dict[str, float]:
    """Return the seconds, and those of CPU, of the stage extract on RTE where its banks are there."""
    from configs import text
    from nml_jax import runtime
    from nml_jax.stages import extract

    config = text.get_config(str(folder))
    train, dev = (str(data / "RTE" / f"{split}.tsv") for split in ("train", "dev"))
    keys = {"texts.train": train, "texts.test": dev, "model.pool": "mean"}
    with config.unlocked():
        config.update_from_flattened_dict(keys)
        config.noise_seed = 0
    with tempfile.TemporaryDirectory() as workdir:
        extract.run(config, Path(workdir), runtime.make_mesh())
        wall, own = time.perf_counter(), time.process_time()
        extract.run(config, Path(workdir), runtime.make_mesh())
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - own}


def serve_opponent(folder: str) -> None:
    """Answer `Opponent`: {"name": ..., "tokens": [...], "types": [...]} -> features; a name -> seconds."""
    torch = import_torch()
    import transformers  # pyright: ignore[reportMissingImports]

    model = transformers.AutoModel.from_pretrained(folder).eval()
    known: dict[str, list[Any]] = {}

    def pad(rows: list[int], tokens: list[list[int]], types: list[list[int]]) -> dict[str, Any]:
        width = max(len(tokens[row]) for row in rows)
        ids, kinds, mask = (torch.zeros((len(rows), width), dtype=torch.long) for _ in range(3))
        for i, row in enumerate(rows):
            n = len(tokens[row])
            ids[i, :n], kinds[i, :n], mask[i, :n] = torch.tensor(tokens[row]), torch.tensor(types[row]), 1
        return {"input_ids": ids, "token_type_ids": kinds, "attention_mask": mask}

    def run(tokens: list[list[int]], types: list[list[int]]) -> Any:
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        out = torch.empty((len(tokens), model.config.hidden_size))
        for rows in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
            batch = pad(rows, tokens, types)
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            out[rows] = (hidden * mask).sum(1) / mask.sum(1)
        return out

    def answer(question: Any) -> Any:
        with torch.inference_mode():
            if isinstance(question, dict):
                known[question["name"]] = [question["tokens"], question["types"]]
                return run(*known[question["name"]]).tolist()
            begun = time.process_time()
            run(*known[question])
            return time.process_time() - begun

    serve(f"{torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads", answer)


def list_tokens(table: Any) -> Iterator[tuple[list[int], list[int]]]:
    for i, n in enumerate(table.lengths):
        yield table.ids[table.starts[i] : table.starts[i + 1]].tolist(), [int(k >= table.seconds[i]) for k in range(n)]


def main() -> None:
    parser = make_parser(__doc__, RESULTS, repeats=5, needs=NEEDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=0, help="most texts of a set that are encoded; 0: all")
    args = parser.parse_args()
    pin_to_a_core()
    if args.serve:
        return serve_opponent(str(args.folder))
    import jax
    import jaxlib

    import nml_jax

    opponent = Opponent(args.torch_python, __file__, str(args.folder), str(args.data), needs=NEEDS)
    facts = {"model": describe_model(args.folder), "batch": BATCH, "length": LENGTH, "repeats": args.repeats}
    head = print_head(nml_jax, jax, jaxlib, np, versions={"torch": opponent.version}, **facts)
    from nml_jax.data.text.batches import list_buckets

    ours, results = Ours(args.folder), {"timed": {}, "padding": {}}
    tables = {name: ours.tokenizer(read_texts(args.data, name)) for name in SETS if (args.data / name).is_dir()}
    shapes: set[tuple[int, int]] = set()
    for name, table in tables.items():
        ratio, own = measure_padding(ours.config, table.lengths)
        shapes |= own
        about = {"padded_over_real": round(ratio, 3), "shapes": sorted(own), "texts": len(table.lengths)}
        results["padding"][name] = about
        print(f"{name}: {ratio:.2f} padded over real tokens, {len(own)} shapes of batches")
    print(f"all: {len(shapes)} shapes of {len(list_buckets(ours.config))} buckets")
    if args.rows:
        tables = {name: ours.tokenizer(read_texts(args.data, name)[: args.rows]) for name in TIMED}
    for name in TIMED:
        tokens, types = (list(part) for part in zip(*list_tokens(tables[name]), strict=True))
        theirs = np.array(opponent.ask({"name": name, "tokens": tokens, "types": types}))
        difference = float(np.abs(ours.run(tables[name]) - theirs).max())
        assert difference < 1e-5, difference
        results["timed"][name] = {"texts": len(tokens), "difference": difference, "ours": [], "torch": []}
    compiled = ours.encode._cache_size()  # type: ignore[attr-defined]
    for _ in range(args.repeats):
        for name, own in results["timed"].items():
            begun = time.process_time()
            ours.run(tables[name])
            own["ours"].append(time.process_time() - begun)
            own["torch"].append(opponent.ask(name))
    totals = [sum(statistics.median(own[side]) for own in results["timed"].values()) for side in ("ours", "torch")]
    print(f"{' + '.join(TIMED)}: {totals[0]:.2f} s, PyTorch {totals[1]:.2f} s: {totals[0] / totals[1]:.2f} × the time")
    results |= {"ratio": totals[0] / totals[1], "compilations": compiled, "rows": args.rows}
    print(f"compilations: {compiled}")
    if not args.rows:
        again = results["second_extraction"] = measure_second_extraction(args.folder, args.data)
        print(f"RTE again from its banks: {again['seconds']:.2f} s, {again['cpu_seconds']:.2f} s of CPU")
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()

"""Compute with transformers, in float64, what all-MiniLM-L6-v2 makes of RTE's development set, in `golden_minilm.npz`.

`python tests/models/weights/golden_minilm.py SHARED FOLDER` writes the file again from the folder of shared data and
that of the model; it needs torch and transformers, but not nml_jax. The file holds every eighth number of the vector
of each of the 277 pairs, cut to 128 tokens: the mean over its tokens, that of its first token, and the pooler's.
"""

import runpy
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
LENGTH, STEP, POOLS = 128, 8, ("mean", "cls", "pooler")


def read_pairs(shared: Path) -> list[tuple[str, ...]]:
    """Return the pairs of RTE's development set."""
    lines = (shared / "language" / "RTE" / "dev.tsv").read_text("utf-8-sig").split("\n")[1:]
    return [tuple(line.split("\t")[1:3]) for line in lines if line]


def main() -> None:
    shared, folder = map(Path, sys.argv[1:])
    runpy.run_path(str(Path(__file__).with_name("golden.py")))["timm"]()
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    found: dict[str, list[np.ndarray]] = {name: [] for name in POOLS}
    with torch.inference_mode():
        for pair in read_pairs(shared):
            cut = {"truncation": "longest_first", "max_length": LENGTH, "padding": False}
            out = model(**tokenizer(*pair, return_tensors="pt", **cut))
            hidden = out.last_hidden_state[0]
            for name, vector in zip(POOLS, (hidden.mean(0), hidden[0], out.pooler_output[0]), strict=True):
                found[name].append(vector[::STEP].numpy())
    np.savez_compressed(FILE, **{name: np.stack(vectors).astype(np.float32) for name, vectors in found.items()})


if __name__ == "__main__":
    main()

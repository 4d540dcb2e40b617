"""Compute with transformers, in float64, the outputs of small text encoders in `golden_language.safetensors`.

`python tests/models/weights/golden_language.py` writes the file again; it needs torch, transformers and safetensors,
but not nml_jax. The tests only need NumPy and the file, which holds in float64: the tokens of the last layer, those of
the layers before it, the pooler's output, and the gradient of the word embeddings. The weights are drawn by names and
shapes, and those of the case "sharp" are large enough that a wrong activation, epsilon, mask or position costs more
than 1e-4.
"""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import save_file

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden.py"))))
FILE = Path(__file__).with_suffix(".safetensors")
SIZES = {"dim": 32, "depth": 2, "heads": 4, "hidden": 64, "context": 20, "vocab": 50}
LENGTHS, SECOND, LENGTH = (12, 5, 1, 9), (7, 12, 12, 3), 12
CASES = {f"{kind} {how}": (kind, how) for kind in ("bert", "roberta", "gpt2") for how in ("plain", "sharp")}


def weights(shapes: dict[str, tuple[int, ...]], how: str) -> dict[str, np.ndarray]:
    """Draw a state dict as at transformers' initialisation, or sharp: matrices times 8, other tensors moved."""
    tensors = {}
    for name, shape in shapes.items():
        z = 0.02 * golden.rng(name).standard_normal(shape, np.float32)
        if len(shape) > 1:
            z = z * (8 if how == "sharp" and "embed" not in name and name[:2] != "wt" and name[:2] != "wp" else 1)
        else:
            norm = name.endswith(("LayerNorm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
            z = norm + (5 * z if how == "sharp" else 0 * z)
        tensors[name] = np.asarray(z, np.float32)
    return tensors


def inputs(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ids int64 [B, L], never RoBERTa's padding within a text, and the mask [B, L]."""
    ids = golden.rng("ids").integers(3, SIZES["vocab"], (len(LENGTHS), LENGTH))
    mask = np.arange(LENGTH) < np.array(LENGTHS)[:, None]
    return np.where(mask, ids, 1 if kind == "roberta" else 0), mask


def build(kind: str):
    """Build transformers' model."""
    golden.timm()  # defines what torchvision may lack, which transformers imports
    import transformers as t

    bert = {
        "hidden_size": SIZES["dim"],
        "num_hidden_layers": SIZES["depth"],
        "num_attention_heads": SIZES["heads"],
        "intermediate_size": SIZES["hidden"],
        "vocab_size": SIZES["vocab"],
        "max_position_embeddings": SIZES["context"],
    }
    if kind == "bert":
        return t.BertModel(t.BertConfig(**bert, layer_norm_eps=1e-12))
    if kind == "roberta":
        bert["max_position_embeddings"] += 2
        return t.RobertaModel(t.RobertaConfig(**bert, layer_norm_eps=1e-5, type_vocab_size=1))
    return t.GPT2Model(
        t.GPT2Config(n_embd=SIZES["dim"], n_layer=SIZES["depth"], n_head=SIZES["heads"], n_inner=SIZES["hidden"],
                     vocab_size=SIZES["vocab"], n_positions=SIZES["context"])
    )  # fmt: skip


def load(kind: str, how: str, dtype):
    """Return transformers' model with drawn weights, and their shapes."""
    import torch

    model = build(kind).eval()
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items() if x.dtype.is_floating_point}
    model.load_state_dict({k: torch.from_numpy(x) for k, x in weights(shapes, how).items()}, strict=True)
    return model.to(dtype), shapes


def run(kind: str, how: str, dtype) -> dict[str, np.ndarray]:
    """Return the outputs of a case."""
    import torch

    model, _ = load(kind, how, dtype)
    model.set_attn_implementation("eager")
    ids, mask = (torch.from_numpy(x) for x in inputs(kind))
    more = {}
    if kind == "bert":
        second = torch.arange(LENGTH) >= torch.tensor(SECOND)[:, None]
        more["token_type_ids"] = second.long()
    out = model(ids, attention_mask=mask.long(), output_hidden_states=True, **more)
    last = out.last_hidden_state
    own = mask[..., None].to(last.dtype)
    words = model.get_input_embeddings().weight
    (torch.cos(last) * own).sum().backward()
    found = {"tokens": last, "gradient": words.grad}
    # transformers' last hidden state of GPT-2 is after the last norm
    found |= {f"block{i}_tokens": h for i, h in enumerate(out.hidden_states[1:-1])} | {"embed": out.hidden_states[0]}
    if kind != "gpt2":
        found["pooler"] = out.pooler_output
    return {name: x.detach().numpy() for name, x in found.items()}


def main() -> None:
    import torch
    import transformers

    tensors, about = {}, {"transformers": transformers.__version__, "torch": torch.__version__, "shapes": {}}
    for case, (kind, how) in CASES.items():
        about["shapes"][kind] = load(kind, how, torch.float64)[1]
        exact, narrow = run(kind, how, torch.float64), run(kind, how, torch.float32)
        tensors |= {f"{case}/{name}": x for name, x in exact.items()}
        print(case, {name: float(np.abs(narrow[name] - x).max()) for name, x in exact.items()})
    save_file(tensors, FILE, metadata={"about": json.dumps(about)})


if __name__ == "__main__":
    main()

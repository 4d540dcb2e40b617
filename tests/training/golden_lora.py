"""Train LoRA with peft, in float64, on the small text encoders of golden_language.py -> `golden_lora.safetensors`.

`python tests/training/golden_lora.py` writes the file again; it needs torch, transformers, peft and safetensors, but
not nml_jax. The file holds, for each family, the factors of every matrix, the head and the logits after ten steps of
AdamW with a cosine to zero, and the loss of every step. Weights are sharp, and all starts are drawn by names.
"""

import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import save_file

FILE = Path(__file__).with_suffix(".safetensors")
golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "models" / "weights" / "golden_language.py")))
POOLS = {"bert": "cls", "roberta": "mean", "gpt2": "last"}
BERT = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
TARGETS = {"bert": BERT, "roberta": BERT, "gpt2": ("c_attn", "c_proj", "c_fc")}
RANK, ALPHA, RATE, DECAY, STEPS, CLASSES = 3, 6.0, 0.003, 0.1, 10, 3
LABELS = (0, 2, 1, 2)


def draw_factor(module: str, rows: int) -> np.ndarray:
    """Draw A, float32 [rows, RANK], of the matrix of a module, named without a prefix."""
    return golden.golden.rng(f"factor {module}").uniform(-1, 1, (rows, RANK)).astype(np.float32) / math.sqrt(rows)


def draw_head() -> np.ndarray:
    """Draw the kernel of the head, float32 [dim, CLASSES]; its bias is 0."""
    return golden.golden.rng("head").normal(0, 0.1, (golden.SIZES["dim"], CLASSES)).astype(np.float32)


def train(kind: str) -> dict[str, np.ndarray]:
    """Train one family."""
    import peft
    import torch

    dtype = torch.float64
    encoder, _ = golden.load(kind, "sharp", dtype)
    encoder.set_attn_implementation("eager")
    how = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS[kind]), lora_dropout=0.0, fan_in_fan_out=kind == "gpt2"
    )
    model = peft.get_peft_model(encoder, how).eval().to(dtype)
    factors = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            short = name.removeprefix("base_model.model.")
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            A.data = torch.from_numpy(draw_factor(short, A.shape[1]).T.copy()).to(dtype)
            factors[short] = A, B
    head = torch.nn.Linear(golden.SIZES["dim"], CLASSES).to(dtype)
    head.weight.data, head.bias.data = torch.from_numpy(draw_head().T.copy()).to(dtype), torch.zeros(CLASSES).to(dtype)
    decayed = [*(x for pair in factors.values() for x in pair), head.weight]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": [head.bias], "weight_decay": 0.0}], lr=RATE, eps=1e-8
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.5 * (1 + math.cos(math.pi * i / STEPS)))
    ids, mask = (torch.from_numpy(x) for x in golden.inputs(kind))
    more = {"token_type_ids": (torch.arange(golden.LENGTH) >= torch.tensor(golden.SECOND)[:, None]).long()}

    def logits():
        last = model(ids, attention_mask=mask.long(), **(more if kind == "bert" else {})).last_hidden_state
        length = mask.sum(1)
        pooled = {
            "cls": lambda: last[:, 0],
            "mean": lambda: (last * mask[..., None]).sum(1) / length[:, None],
            "last": lambda: last[torch.arange(len(last)), length - 1],
        }[POOLS[kind]]()
        return head(pooled)

    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(), torch.tensor(LABELS))
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    print(kind, losses[0], losses[-1], len(factors), "matrices")
    found = {f"{name}.{side}": x.detach().T.numpy() for name, pair in factors.items()
             for side, x in zip("ab", pair, strict=True)}  # fmt: skip
    found |= {"kernel": head.weight.detach().T.numpy(), "bias": head.bias.detach().numpy()}
    return found | {"logits": logits().detach().numpy(), "losses": np.array(losses)}


def main() -> None:
    golden.golden.timm()  # defines what torchvision may lack, which transformers imports
    import peft
    import torch

    tensors = {f"{kind}/{name}": np.ascontiguousarray(x) for kind in POOLS for name, x in train(kind).items()}
    save_file(tensors, FILE, metadata={"about": json.dumps({"peft": peft.__version__, "torch": torch.__version__})})


if __name__ == "__main__":
    main()

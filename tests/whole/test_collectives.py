"""What eight devices say to each other in a training step, read from the compiled program of the whole step.

A gradient is the sum of what the devices found for their rows. It is right to send each of them once, after the last
row, in one operation among all devices: less cannot be sent, and more operations wait more often. So "one reduction of
the gradients" means: a single all-reduce holds the gradient of every kernel, its group is the whole mesh, it stands in
no loop, and all reductions of the program together carry hardly more bytes than the parameters have. The rest are
numbers: metrics, statistics of BatchNorm, which a layer needs before the next, and of the contrastive loss.
"""

import functools
import math
from collections import Counter

import jax
import pytest
from jax.sharding import Mesh

from configs import clip_vitb16, resnet50_in1k, vitb16_in1k
from launch import hlo
from nml_jax import runtime, settings
from nml_jax.stages.dry_run import lower

B, CHUNK, EMBED = 96, 4, 24  # 96 and 12, the rows of a device, are no other size of the models

SMALL = {
    "vit": (vitb16_in1k, {"model.dim": 128, "model.heads": 2, "model.depth": 1, "data.num_classes": 10}),
    "resnet": (
        resnet50_in1k,
        {"model.width": 16, "model.blocks": (1, 1), "model.bn_group": 0, "data.num_classes": 10},
    ),
    "clip": (
        clip_vitb16,
        {"model.dim": 64, "model.heads": 2, "model.depth": 1, "model.text_width": 64, "model.text_depth": 1,
         "model.text_heads": 2, "model.text_vocab": 50, "model.text_context": 7, "model.embed_dim": EMBED,
         "objective.chunk": CHUNK},
    ),
}  # fmt: skip

# Quick to compile, slow to run: code generation alone is cut short, what is sent is decided before it.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@functools.cache
def compiled(name: str, mesh: Mesh, **overrides):
    """The whole training step of a small model on `mesh`, and the shapes of its state."""
    module, small = SMALL[name]
    config = module.get_config()
    common = {
        "model.dtype": "float32", "data.image_size": 32, "train.batch": B, "train.epochs": 1.0, "model.drop_path": 0.0,
        "optimizer.warmup_steps": 10, "objective.mixup": 0.0, "objective.cutmix": 0.0,
    }  # fmt: skip
    with config.unlocked():
        config.update_from_flattened_dict({**common, **small, **overrides})
    cell = next(iter(settings.expand_sweep(config).values()))
    _, program, lowered = lower(cell, mesh, 100_000, 0 if name == "clip" else 10)
    return lowered.compile(compiler_options=QUICK), program.shapes


def sizes(c: hlo.Collective) -> Counter[int]:
    """How often the collective carries an array of so many elements; XLA may turn and flatten them."""
    return Counter(math.prod(shape) for text in c.shapes for shape in hlo.find_shapes(text))


@pytest.mark.parametrize("name", SMALL)
def test_one_reduction_of_all_gradients(name: str, mesh: Mesh):
    step, shapes = compiled(name, mesh)
    reductions = [c for c in hlo.find_collectives(step.as_text(), mesh.size) if c.kind == "all-reduce"]
    assert {c.group for c in reductions} == {mesh.size}
    assert {c.times for c in reductions} == {1}
    kernels = Counter(x.size for x in jax.tree.leaves(shapes.params) if x.ndim > 1)
    assert kernels.total() > 5
    assert [kernels <= sizes(c) for c in reductions].count(True) == 1
    parameters = sum(4 * x.size for x in jax.tree.leaves(shapes.params))
    assert parameters <= sum(c.bytes for c in reductions) < 1.1 * parameters


def test_no_device_has_the_logits_of_all_pairs(mesh: Mesh):
    text = compiled("clip", mesh)[0].as_text()
    shapes = hlo.find_shapes(text)
    assert (CHUNK, B) in shapes or (1, CHUNK, B) in shapes
    assert not [shape for shape in shapes if shape.count(B) > 1 or math.prod(shape) == B**2]
    rows = B // mesh.size
    assert not [shape for shape in shapes if B in shape and rows in shape]  # nor those of its own rows at once
    sent = {s for c in hlo.find_collectives(text, mesh.size) for x in c.shapes for s in hlo.find_shapes(x) if B in s}
    assert sent == {(B, EMBED), (B,)}


def test_nobody_holds_the_whole_optimiser_state_under_fsdp():
    mesh = runtime.make_mesh(-1, 4)
    step, shapes = compiled("vit", mesh, **{"train.ema": 0.9})
    (state, batch, _), _ = step.input_shardings
    assert all(sharding.spec == runtime.BATCH_SPEC for sharding in batch.values() if sharding)  # None: it is not read
    held = 0
    for where in (state, step.output_shardings[0]):
        for tree in ("params", "opt_state", "ema"):
            leaves = jax.tree.leaves(getattr(shapes, tree))
            placed = jax.tree.leaves(getattr(where, tree))
            parts = [math.prod(s.shard_shape(x.shape)) for x, s in zip(leaves, placed, strict=True)]
            large = [(x.size, part) for x, part in zip(leaves, parts, strict=True) if x.size >= runtime.SHARD_FROM]
            assert large
            assert all(size == 4 * part for size, part in large), tree
            held += sum(parts)
    # What the program itself sets aside for its arguments: these parts (of the input), and the batch.
    images = B // mesh.size * 32 * 32 * 3
    assert step.memory_analysis().argument_size_in_bytes < 4 * held / 2 + images + 4096


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_no_activation_is_sent_under_fsdp(name: str):
    """Weights come to the rows, never rows to the weights: but for what a contrastive loss compares, and numbers of one
    per example, no collective carries the rows of a device, of all along a mesh axis, or of the batch."""
    mesh, batch = runtime.make_mesh(-1, 4), 88
    wide = {"model.dim": 128, "model.text_width": 128, "objective.chunk": 11} if name == "clip" else {}
    step, shapes = compiled(name, mesh, **{"train.batch": batch, **wide})
    sent = {s for c in hlo.find_collectives(step.as_text(), mesh.size) for x in c.shapes for s in hlo.find_shapes(x)}
    sharded = {x.shape for x in jax.tree.leaves(shapes.params) if x.size >= runtime.SHARD_FROM}
    assert sharded
    assert sharded <= sent, "they are gathered"
    tokens = (1, 4, 5, 7)  # of an image, with the class token; of a text: dimensions may be merged
    rows = {batch // devices * n for devices in (1, 2, 4, 8) for n in tokens}
    assert not rows & {n for x in jax.tree.leaves(shapes.params) for n in x.shape}, "no size of a weight"
    assert {s for s in sent if len(s) > 1 and rows & set(s)} == ({(batch, EMBED)} if name == "clip" else set())

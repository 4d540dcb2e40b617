"""Every compiled program lowers for every platform, from shapes: so a CPU shows what a TPU or GPU would refuse.

For a TPU the text must hold no float64, which it emulates, and no SVD, which it compiles for minutes.
"""

import ast
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from configs import common
from nml_jax import models, runtime
from nml_jax.assembly import encode
from nml_jax.evals import classification, collect, detection, retrieval, zeroshot
from nml_jax.models.detection import SYSTEMS
from nml_jax.models.heads import mlp
from nml_jax.objectives import terms
from nml_jax.objectives.nmtune import PRESETS
from nml_jax.spectrum import device
from nml_jax.spectrum.rows import Kind
from nml_jax.stages import detect
from nml_jax.training import finetune, loop, perturb
from nml_jax.tuning import descent, neighbours, probes, spread
from tests.scenes import detect_experiment, mesh_cases
from tests.scenes.meshes import mesh_of
from tests.training import test_finetune, test_text_tuning

PLATFORMS = ("cpu", "tpu", "cuda")
N, D, K, VIEWS, HEADS = 48, 8, 3, 2, 3


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def whole(*sizes: int) -> jax.ShapeDtypeStruct:
    return shape(*sizes, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function with arguments (shapes where they are arrays), and where nml_jax compiles it."""

    place: str  # module and function, as `find_places` names them
    make: Callable[[], tuple[Any, tuple, dict[str, Any]]]
    platforms: tuple[str, ...] = PLATFORMS


def step(case: str, *, fsdp: int = 1) -> Callable:
    """The training step, on eight devices."""

    def make():
        mesh = mesh_of(8 // fsdp, fsdp)
        program = mesh_cases.build_program(case, mesh, "float32")
        return program.step, (program.shapes, *batch_and_signals(mesh_cases.make_batch(case, 0), mesh)), {}

    return make


def batch_and_signals(batch: Mapping[str, Any], mesh) -> tuple[Any, Any]:
    placed = NamedSharding(mesh, runtime.BATCH_SPEC)
    shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed) for k, x in batch.items()}
    signal = jax.ShapeDtypeStruct((mesh.size,), jnp.int32, sharding=placed)
    return shapes, loop.Signals(*[signal for _ in loop.Signals._fields])


def finetuning(method: str, added: str, model: str = "vit_ti", **tuning: Any) -> Callable:
    """The step of fine-tuning, with or without NMTune's terms."""

    def make():
        built = test_finetune.program(model, test_finetune.setup(method, added, mlp=added != "none"), **tuning)
        return built.step, (built.shapes, *batch_and_signals(test_finetune.BATCH, test_finetune.one())), {}

    return make


def text_tuning(method: str, kind: str) -> Callable:
    """The step of fine-tuning a text encoder, with NEFTune's noise."""

    def make():
        plan, mesh = loop.Plan(4, 2.0), test_finetune.one()
        sections = test_text_tuning.sections(kind, neftune=5.0)
        built = finetune.build(*sections, test_text_tuning.setup(method), 0.01, plan, mesh)
        return built.step, (built.shapes, *batch_and_signals(test_text_tuning.make_batch(kind), mesh)), {}

    return make


def init(case: str) -> Callable:
    def make():
        return mesh_cases.build_program(case, mesh_of(8), "float32").init, (jax.random.key(0),), {}

    return make


@functools.cache
def model(case: str) -> models.Model:
    return mesh_cases.build_program(case, mesh_of(1), "float32").model


def evaluation(program: Any, case: str, *before: Any, fields: Mapping[str, Any], **how: Any) -> Callable:
    """A program over a batch of a model in evaluation."""

    def make():
        built = model(case)
        inputs = {k: x for k, x in mesh_cases.make_batch(case, 0).items() if k in ("image", "text")}
        batch = {k: shape(*x.shape, dtype=x.dtype) for k, x in inputs.items()} | fields
        return program, (*built.shapes, *before, batch), {"apply": built.apply, **how}

    return make


def extraction() -> tuple[Any, tuple, dict[str, Any]]:
    built = model("vit")
    batch = {"image": shape(mesh_cases.BATCH, 8, 8, 3, dtype=jnp.uint8)}
    return encode.compile_encoder(built, ("features",), mesh_of(8)), (*built.shapes, batch), {}


def detector(system: str, what: str) -> Callable:
    """The start, the step or the detections of a tiny detector on eight devices, on a canvas that is not square."""

    def make():
        mesh = mesh_of(8)
        whole = {"model.blocks": (1, 1, 1, 1), "detect.retina.strides": (8, 16)}  # as in configs/detect_digits.py
        config = detect_experiment.config(**{"detect.data.canvas": (32, 64)}, **whole)
        _, program = detect.build_program(config, mesh, system, 16, K)
        batch, turned = detect.make_batch_shapes(config, program.model)
        if what == "init":
            return program.init, (jax.random.key(0),), {}
        if what == "step":
            return program.step, (program.shapes, *batch_and_signals(batch, mesh)), {}
        inputs = {name: turned[name] for name in ("image", "size")}
        return detection._detect, (*program.model.shapes, inputs), {"apply": program.model.apply}

    return make


TEXT = {"dim": 8, "depth": 1, "heads": 2, "hidden": 8, "vocab": 9, "context": 8}


def network(name: str, size: int = 8, **keys: Any) -> Callable:
    """The gradient of an encoder that no other program has, as tiny as it can be."""

    def make():
        config = common.get_config().model
        config.update({"name": name, **keys})
        built = models.build(config, num_classes=K, image_size=size)

        def lose(params, state, batch):
            outputs, _ = built.apply(params, state, batch, train=True, key=None)
            return outputs.get("logits", outputs["features"]).sum()

        batch = {key: shape(2, *x.shape[1:], dtype=x.dtype) for key, x in built.spec.items()}
        return jax.jit(jax.grad(lose)), (*built.shapes, batch), {}

    return make


def specify(method: str, preset: str = "", outputs: int = K, **options: Any) -> tuple[descent.Spec, dict[str, Any]]:
    """A head's static arguments, and the shapes of the numbers of its terms."""
    form = mlp.Form(method != "linear", width=2)
    if method in ("linear", "mlp"):
        return descent.Spec(form, None, outputs, 16, True, **options), {}
    weights = PRESETS[preset] if preset else terms.make_weights(method)
    active, numbers = terms.split(method, weights)
    return descent.Spec(form, active, outputs, 16, True, **options), dict.fromkeys(numbers, shape())


def head(program: str, method: str, preset: str = "", **options: Any) -> Callable:
    """A head in training: `train_one`, `advance`, which is fed with shards, or one of spread.py for several heads."""

    def make():
        spec, numbers = specify(method, preset, **options)
        leading = (HEADS,) if program.startswith("compile_") else ()
        seed = shape(*leading, dtype=jnp.uint32)
        each = dict.fromkeys(numbers, shape(*leading))
        setting = descent.Setting(whole(*leading, N), *(shape(*leading),) * 2, seed, each, *(shape(*leading),) * 4)
        labels = shape(N) if spec.num_classes == 1 else whole(N)
        bank = descent.TrainingSet(shape(N, VIEWS, D), labels, shape(N))
        devices = tuple(jax.devices()[:HEADS])
        if program == "compile_mapped":
            return spread.compile_mapped(spec, devices), (bank, setting, whole(), whole(), None), {}
        if program == "train_one":
            return descent.train_one, (spec, bank, setting, whole(), whole()), {}
        standard = {"mean": shape(D), "scale": shape(D)}
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[len(leading) :], x.dtype), setting)
        carry = jax.eval_shape(lambda s, standard: descent.start(spec, s, D, standard), one, standard)
        if program in ("compile_advance", "compile_advance, own sizes"):
            carry = jax.tree.map(lambda x: jax.ShapeDtypeStruct((HEADS, *x.shape), x.dtype), carry)
            heads, alike = whole(HEADS), program == "compile_advance"
            size = whole() if alike else heads
            return spread.compile_advance(spec, devices, alike), (carry, bank, setting, size, heads, size, heads), {}
        return descent.advance, (spec, carry, bank, setting, whole(), whole(), whole()), {}

    return make


def begin() -> tuple[Any, tuple, dict[str, Any]]:
    spec, _ = specify("mlp", noisytune=True)
    setting = descent.Setting(whole(N), shape(), shape(), shape(dtype=jnp.uint32), {}, *(shape(),) * 4)
    return descent.begin, (spec, setting, D, {"mean": shape(D), "scale": shape(D)}), {}


def outputs() -> tuple[Any, tuple, dict[str, Any]]:
    form = mlp.Form(True)
    params, state = jax.eval_shape(lambda key: mlp.make_head(form, K).init(key, D), jax.random.key(0))
    return descent._apply, (form, K, params, state, shape(16, D)), {}


def perturbation() -> tuple[Any, tuple, dict[str, Any]]:
    return jax.jit(perturb.noisytune), (model("vit").shapes[0], jax.random.key(0), 0.1), {}


def spectrum(double: bool, **mode: Any) -> Callable:
    def make():
        F = jax.ShapeDtypeStruct((2, 64, D), jnp.float32, sharding=NamedSharding(mesh_of(8), jax.P(None, "data")))
        how = Kind(**{"normalize": None, "center": None, "exact": False} | mode)
        reduce = device._compile_reduction(device._make_mesh(F), how, double)  # type: ignore[arg-type]
        return reduce, (F, shape(64, dtype=jnp.bool)), {}

    return make


def slices() -> tuple[Any, tuple, dict[str, Any]]:
    F = jax.ShapeDtypeStruct((64, D), jnp.float32, sharding=NamedSharding(mesh_of(8), jax.P("data")))
    return device._compile_slice(device._make_mesh(F), 16), (F, whole()), {}  # type: ignore[arg-type]


LABELS = {"label": whole(16), "label_clean": whole(16), "mask": shape(16)}
TEXTS = {"text_clean": shape(16, 8, dtype=jnp.int32), "mask": shape(16)}
E = mesh_cases.TEXT["model.embed_dim"]
STEP, HEAD, SPREAD = "training/loop.py:assemble", "tuning/descent.py:", "tuning/spread.py:"
METHODS = (("linear",), ("mlp",), ("nmtune", "paper"), ("nmtune", "code"), ("skd",), ("fgs",), ("lgm",))

PROGRAMS: dict[str, Program] = {
    **{f"step: {case}": Program(STEP, step(case)) for case in mesh_cases.CASES},
    **{f"step: {case}, fsdp": Program(STEP, step(case, fsdp=4)) for case in ("vit", "clip vit in parts and chunks")},
    "init": Program("training/state.py:create", init("clip vit")),
    "init of a model": Program("models/__init__.py:init", init("resnet")),
    **{
        f"fine-tuning: {method}, {added}": Program(STEP, finetuning(method, added, consistency=True))
        for method in ("full", "lora")
        for added in ("none", "paper", "code")
    },
    **{
        f"fine-tuning of texts: {method}, {kind}": Program(STEP, text_tuning(method, kind))
        for method, kind in (("lora", "bert"), ("full", "roberta"), ("lora", "gpt2"))
    },
    "fine-tuning: the start": Program("training/finetune.py:start", perturbation),
    **{
        f"detector: {system}, {what}": Program(place, detector(system, what))
        for system in SYSTEMS
        for what, place in {
            "init": "models/detection/system.py:draw",
            "step": STEP,
            "detections": "evals/detection.py:_detect",
        }.items()
    },
    "extraction": Program("runtime.py:jit", extraction),
    **{
        f"network: {name}": Program("runtime.py:jit", network(name, **keys))
        for name, keys in {
            "efficientnet_b0": {"blocks": (1, 1), "widths": (8, 8, 8, 16)},
            "convnext_t": {"blocks": (1,), "widths": (8,)},
            "swin_t": {"blocks": (2, 1), "width": 8, "heads": 2, "patch": 2, "window": 2},
            "bit_50x1": {"blocks": (1,), "width": 32},
            "bert": {**TEXT, "pool": "pooler"},
            "roberta": {**TEXT, "pool": "mean"},
            "gpt2": {**TEXT, "pool": "last"},
            "vit_s14_dinov2": {"depth": 1, "dim": 8, "heads": 2, "patch": 4},
        }.items()
    },
    "classification": Program(
        "evals/classification.py:_sum_batch",
        evaluation(classification._sum_batch, "resnet", fields=LABELS, num_classes=K, clean=False),
    ),
    "outputs": Program(
        "evals/collect.py:get_output",
        evaluation(collect.get_output, "clip vit", fields={}, name="embedding"),
    ),
    "zero-shot: texts": Program(
        "evals/zeroshot.py:_sum_texts",
        evaluation(zeroshot._sum_texts, "clip vit", fields={"id": whole(16), "mask": shape(16)}, num_classes=K),
    ),
    "zero-shot: images": Program(
        "evals/zeroshot.py:_sum_images",
        evaluation(zeroshot._sum_images, "clip vit", shape(K, E), fields=LABELS, clean=True, class_map=((0,), (1, 2))),
    ),
    "zero-shot: norms": Program("evals/zeroshot.py:_normalise", lambda: (zeroshot._normalise, (shape(K, E),), {})),
    "retrieval": Program(
        "evals/retrieval.py:_rank_block",
        lambda: (retrieval._rank_block, (shape(16, E), whole(16), shape(40, E), whole(40)), {}),
    ),
    "fit of captions": Program("evals/retrieval.py:_sum_fit", evaluation(retrieval._sum_fit, "clip vit", fields=TEXTS)),
    **{
        f"head: {name}, {kind}": Program(place + program.split()[-1], head(program.split()[0], *which, gce=gce))
        for name, which, gce in (
            *((" ".join(which), which, False) for which in METHODS),
            *((f"{which[0]} with GCE", which, True) for which in (("linear",), ("mlp",), ("nmtune", "paper"))),
        )
        for kind, place, program in (
            ("single", HEAD, "train_one"),
            ("streamed", HEAD, "advance"),
            ("together", SPREAD, "compile_mapped _spread"),
            ("together, an epoch", SPREAD, "compile_advance _spread"),
        )
    },
    "head: together, an epoch, own sizes": Program(
        SPREAD + "_spread", head("compile_advance, own sizes", "nmtune", "paper")
    ),
    "head: regression": Program(HEAD + "train_one", head("train_one", "lgm", outputs=1)),
    "head: perturbed": Program(HEAD + "train_one", head("train_one", "mlp", noisytune=True, neftune=True)),
    "head: the start": Program(HEAD + "begin", begin),
    "head: outputs": Program(HEAD + "_apply", outputs),
    "head: mean and scale": Program(
        HEAD + "get_standard",
        lambda: (jax.jit(descent.compute_statistics), (shape(N, VIEWS, D), whole(N), whole()), {}),
    ),
    "L-BFGS": Program(
        "tuning/probes.py:_compute_losses",
        lambda: (probes._compute_losses, (shape(D + 1, K), shape(N, D), whole(N)), {}),
    ),
    "L-BFGS: the start": Program(
        "tuning/probes.py:_measure_spread", lambda: (probes._measure_spread, (shape(D + 1, K), shape(N, D)), {})
    ),
    **{
        f"spectrum: {kind}": Program("spectrum/device.py:_compile_reduction", spectrum(double, **mode), platforms)
        for kind, double, mode, platforms in (
            ("raw", False, {}, PLATFORMS),
            ("code", False, {"normalize": "rows", "center": "samples"}, PLATFORMS),
            ("centred", False, {"center": "features"}, PLATFORMS),
            ("float64", True, {"normalize": "rows", "center": "features"}, ("cpu", "cuda")),
            ("float64, QR", True, {"exact": True}, ("cpu", "cuda")),
        )
    },
    "spectrum: rows": Program("spectrum/device.py:_compile_slice", slices),
    "k-NN": Program(
        "tuning/neighbours.py:_merge_block",
        lambda: (
            neighbours._merge_block,
            (shape(16, 5 + N), whole(16, 5 + N), shape(16, D), shape(N, D), shape(N), whole()),
            {},
        ),
    ),
}

# Compiled, but no program that another platform could refuse.
ELSEWHERE = {
    "runtime.py:check_devices": "a sum of whole numbers",
    "runtime.py:_choose_cpu_options": "asks the compiler for CPUs",
    "runtime.py:_make_replicate": "the identity",
    "training/pretrained.py:_draw_leaves": "a part of what the initialisation of a model draws",
}


def find_places() -> set[str]:
    """Find where nml_jax compiles: "module:function" for each mention of jax.jit, or "module:name" of what it makes."""
    places = set()
    for path in Path(models.__file__).parents[1].rglob("*.py"):
        module = path.relative_to(Path(models.__file__).parents[1]).as_posix()

        def visit(node: ast.AST, name: str, module: str = module) -> None:
            if isinstance(node, ast.Attribute) and node.attr == "jit" and ast.unparse(node.value) == "jax":
                places.add(f"{module}:{name}")
            for field, value in ast.iter_fields(node):
                inside = (
                    node.name if isinstance(node, ast.FunctionDef) and field in ("body", "decorator_list") else name
                )
                if isinstance(node, ast.Assign) and not name:
                    inside = ast.unparse(node.targets[0])
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        visit(child, inside)

        visit(ast.parse(path.read_text("utf-8")), "")
    return places


def test_no_program_is_forgotten():
    named = {program.place for program in PROGRAMS.values()}
    assert find_places() == named | set(ELSEWHERE)


@pytest.mark.parametrize("name", PROGRAMS)
def test_lowers_for_every_platform(name: str):
    compiled, args, kwargs = PROGRAMS[name].make()
    traced = getattr(compiled, "__wrapped__", compiled) if not hasattr(compiled, "trace") else compiled
    with jax.enable_x64(name.startswith("spectrum: float64")):
        traced = traced.trace(*args, **kwargs)
    others = tuple(platform for platform in PROGRAMS[name].platforms if platform != "tpu")
    traced.lower(lowering_platforms=others)  # one module: what an operation lacks on one of them raises an error
    if "tpu" in PROGRAMS[name].platforms:
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert not re.search(r"\bf64\b|xf64\b", text), "float64"
        assert not re.search(r"@\w*(svd|gesd|gesvd)", text), "SVD"

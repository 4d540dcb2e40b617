import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from configs.common import get_config
from nml_jax import objectives, runtime
from nml_jax.errors import UserError
from nml_jax.objectives.contrastive import Contrastive, info_nce, sigmoid_loss
from tests.scenes.meshes import mesh_of

LOSSES = {"clip": info_nce, "siglip": sigmoid_loss}
SCALE, BIAS = 14.3, -3.0


def embeddings(n=24, e=16, seed=0, alike=0.0):
    """Draw rows of length 1; a text is `alike` parts image."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, n, e))
    y = y + alike * x
    return tuple((z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in (x, y))


def softplus(t):
    return np.maximum(t, 0) + np.log1p(np.exp(-np.abs(t)))


def compute_in_numpy(form, x, y, scale, bias):
    """Compute (loss, (d x, d y, d scale, d bias), correct) in float64."""
    x, y, n = x.astype(np.float64), y.astype(np.float64), len(x)
    scores = x @ y.T
    if form == "clip":
        logits = scale * scores
        by_row = np.exp(logits - logits.max(1, keepdims=True))
        by_column = np.exp(logits - logits.max(0))
        rows, columns = by_row / by_row.sum(1, keepdims=True), by_column / by_column.sum(0)
        total = np.log(by_row.sum(1)) + logits.max(1) + np.log(by_column.sum(0)) + logits.max(0)
        loss, dl = (total / 2 - logits.diagonal()).mean(), ((rows + columns) / 2 - np.eye(n)) / n
    else:
        z = 2 * np.eye(n) - 1
        logits = scale * scores + bias
        loss, dl = softplus(-z * logits).sum() / n, -z * np.exp(-softplus(z * logits)) / n
    d_bias = 0.0 if form == "clip" else dl.sum()
    return loss, (scale * dl @ y, scale * dl.T @ x, (dl * scores).sum(), d_bias), logits.argmax(1) == np.arange(n)


@functools.cache
def compiled(form, chunk, blocks):
    def loss(x, y, scale, bias):
        return LOSSES[form](x, y, scale, *([bias] if form == "siglip" else []), chunk=chunk, blocks=blocks)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))


def run(form, x, y, scale=SCALE, bias=BIAS, *, chunk=0, blocks=1):
    (value, correct), grads = compiled(form, chunk, blocks)(x, y, jnp.float32(scale), jnp.float32(bias))
    return float(value), [np.asarray(g) for g in grads], np.asarray(correct)


def assert_same(got, want, value_rtol=1e-6):
    np.testing.assert_allclose(got[0], want[0], rtol=value_rtol)
    size = max(np.abs(g).max() for g in want[1][:2])
    for name, a, b in zip(("x", "y", "scale", "bias"), got[1], want[1], strict=True):
        limit = 1e-5 * (size if name in "xy" else max(abs(float(b)), size))
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=name)
    np.testing.assert_array_equal(got[2], want[2])


def test_two_pairs_by_hand():
    # l = [[2, 0], [0, 2]]; each row and column: log(e² + 1) − 2 = log(1 + e⁻²)
    eye = jnp.eye(2)
    for chunk in (0, 1):
        assert run("clip", eye, eye, 2.0, chunk=chunk)[0] == pytest.approx(np.log1p(np.exp(-2)), rel=1e-6)
        # own logits 2 − 1 = 1, others −1: both terms of a row are log(1 + e⁻¹)
        assert run("siglip", eye, eye, 2.0, -1.0, chunk=chunk)[0] == pytest.approx(2 * np.log1p(np.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("form", LOSSES)
@pytest.mark.parametrize("chunk", [0, 5, 24])
@pytest.mark.parametrize("case", ["random", "alike", "equal", "identical texts", "one pair"])
@pytest.mark.parametrize("scale", [SCALE, 100.0])
def test_matches_numpy(form, chunk, case, scale):
    x, y = embeddings(alike=4.0 if case == "alike" else 0.0)
    if case == "equal":
        x = y = np.full_like(x, 0.25)
    if case == "identical texts":
        y = np.tile(y[:1], (len(y), 1))
    if case == "one pair":
        x, y = x[:1], y[:1]
    got, want = run(form, x, y, scale, chunk=chunk), compute_in_numpy(form, x, y, scale, BIAS)
    error = 4e-7 * scale  # of a float32 logit
    # The error of a float32 sum of 24² losses, if the compiler does not vectorise it, is at most 24²·2⁻²⁴ = 3.4e-5.
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=error)
    for a, b, factor in zip(got[1], want[1], (scale / len(x), scale / len(x), 1, 1), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2 * error * factor)
    if case in ("random", "alike", "one pair"):
        np.testing.assert_array_equal(got[2], want[2])


@pytest.mark.parametrize("form", LOSSES)
@pytest.mark.parametrize(("blocks", "chunk"), [(1, 5), (2, 5), (4, 5), (8, 5), (8, 1), (8, 4), (8, 16), (1, 999)])
def test_chunked_is_the_plain_form_on_any_number_of_devices(form, blocks, chunk):
    x, y = embeddings(128, 24, alike=0.7)
    put = functools.partial(jax.device_put, device=NamedSharding(mesh_of(blocks), runtime.BATCH_SPEC))
    assert_same(run(form, put(x), put(y), chunk=chunk, blocks=blocks), run(form, x, y))


@pytest.mark.parametrize("form", LOSSES)
def test_plain_form_on_eight_devices(form, mesh):
    x, y = embeddings(64, 24, alike=0.7)
    put = functools.partial(jax.device_put, device=NamedSharding(mesh, runtime.BATCH_SPEC))
    assert_same(run(form, put(x), put(y)), run(form, x, y))


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_small_loss_and_its_gradient_keep_their_digits(chunk):
    x, scale, error = np.eye(8, dtype=np.float32), 14.5, 2.4e-7  # of 1 + ε, twice rounded
    value, (dx, *_), correct = run("clip", x, x, scale, chunk=chunk)
    want, (want_dx, *_), _ = compute_in_numpy("clip", x, x, scale, 0.0)
    assert want < 4e-6  # 3.7 units in the last place of a logit: 2.9e-7 from the nearest
    np.testing.assert_allclose(value, want, rtol=0, atol=error)
    np.testing.assert_allclose(dx, want_dx, rtol=0, atol=error * scale / len(x))
    assert correct.all()


def test_ties_count_for_the_first_as_an_argmax_does():
    same = np.full((4, 4), 0.5, np.float32)
    for form in LOSSES:
        for chunk in (0, 1, 3):
            np.testing.assert_array_equal(run(form, same, same, chunk=chunk)[2], [True, False, False, False])


@pytest.mark.parametrize("form", LOSSES)
def test_what_is_not_finite_is_not_hidden(form):
    x, y = embeddings()
    x[3, 2] = np.nan
    value, (dx, dy, *_), correct = run(form, x, y, chunk=5)
    assert np.isnan(value)
    assert np.isnan(dx).any()
    assert np.isnan(dy).any()
    assert not correct[3]


def program(form, n, e, chunk, blocks=8, devices=8):
    """Compile the gradient of n pairs."""
    rows = jax.ShapeDtypeStruct((n, e), jnp.float32, sharding=NamedSharding(mesh_of(devices), runtime.BATCH_SPEC))
    number = jax.ShapeDtypeStruct((), jnp.float32)
    return compiled(form, chunk, blocks).lower(rows, rows, number, number).compile()


@pytest.mark.parametrize("form", LOSSES)
def test_no_device_holds_or_sends_more_than_a_chunk_of_its_rows(form):
    n, e, chunk = 512, 48, 24
    eight = program(form, n, e, chunk)
    text = eight.as_text()
    shapes = {tuple(map(int, shape.split(","))) for shape in re.findall(r"[a-z0-9]+\[([\d,]+)\]", text)}
    # Arrays with a side of B are B × E, or at most chunk × B.
    assert not any(shape.count(n) > 1 for shape in shapes)
    per_column = {np.prod([side for side in shape if side != n]) for shape in shapes if n in shape}
    assert chunk in per_column
    assert max(per_column) == e
    # Devices communicate only before and after the loops: embeddings and values per row or column.
    loops, entry = text.split("\nENTRY ")
    collective = r"= (.*) (?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    assert not re.search(collective, loops)
    sent = {shape for line in re.findall(collective, entry) for shape in re.findall(r"f32\[([\d,]*)\]", line)}
    assert f"{n},{e}" in sent
    assert sent <= {f"{n},{e}", f"{n}", ""}
    flops = [p.cost_analysis()["flops"] for p in (eight, program(form, n, e, chunk, devices=1))]
    assert flops[0] / flops[1] == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize(("form", "share"), [("clip", 16), ("siglip", 8)])
def test_memory_grows_with_the_chunk_and_not_with_the_square(form, share):
    n, e = 4096, 64
    plain, chunked = (program(form, n, e, chunk, blocks=1, devices=1).memory_analysis() for chunk in (0, 64))
    assert plain.temp_size_in_bytes > 4 * n * n
    assert chunked.temp_size_in_bytes < plain.temp_size_in_bytes / share


class Pair:
    """A model whose embeddings are the batch's own; a parameter scales those of images."""

    def __init__(self, without=()):
        self.without = without

    def apply(self, params, model_state, batch, *, train, key):
        assert train
        outputs = {
            "embedding": params["w"] * batch["image"],
            "text_embedding": batch["text"],
            "logit_scale": jnp.exp(params["t"]),
            "logit_bias": params["b"],
        }
        return {k: v for k, v in outputs.items() if k not in self.without}, {"seen": model_state["seen"] + 1}


@pytest.mark.parametrize("form", LOSSES)
@pytest.mark.parametrize("chunk", [0, 5])
def test_objective_hands_out_loss_state_and_metrics(form, chunk):
    x, y = embeddings(alike=0.4)
    params = {"w": jnp.float32(1), "t": jnp.float32(np.log(SCALE)), "b": jnp.float32(BIAS)}
    config = get_config().objective
    config.update({"name": form, "chunk": chunk})
    objective = objectives.make(config, num_classes=0, blocks=2)
    assert objective == Contrastive(form=form, chunk=chunk, blocks=2)
    assert objectives.uses_captions(config)
    loss = functools.partial(objective.loss, Pair())
    batch = {"image": x, "text": y, "mask": np.ones(len(x), np.float32)}
    (value, (state, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params, {"seen": 0}, batch, None)
    want, (_, _, d_scale, d_bias), correct = compute_in_numpy(form, x, y, SCALE, BIAS)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(grads["t"], d_scale * SCALE, rtol=1e-4)
    np.testing.assert_allclose(grads["b"], d_bias, rtol=1e-5)
    assert state == {"seen": 1}
    assert 0 < correct.sum() < len(x)
    np.testing.assert_allclose(metrics["loss"], (want * len(x), len(x)), rtol=1e-6)
    np.testing.assert_array_equal(metrics["accuracy"], (correct.sum(), len(x)))
    np.testing.assert_allclose(metrics["logit_scale"], (SCALE, 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("without", "form", "cure"),
    [
        (("logit_bias",), "siglip", "--config.model.logit_bias=-10.0"),
        (("embedding", "text_embedding", "logit_scale", "logit_bias"), "clip", "--config.model.name=clip"),
    ],
)
def test_a_model_that_lacks_something_is_refused(without, form, cure):
    x, y = embeddings()
    params = {"w": 1.0, "t": 1.0, "b": 1.0}
    with pytest.raises(UserError) as e:
        Contrastive(form=form).loss(Pair(without), params, {"seen": 0}, {"image": x, "text": y}, SimpleNamespace())
    assert without[0] in e.value.cause
    assert e.value.cure == cure


def test_a_bias_cancels_in_clip():
    x, y = embeddings()
    params = {"w": 1.0, "t": 1.0, "b": 1.0}
    batch = {"image": x, "text": y}
    values = [Contrastive().loss(Pair(w), params, {"seen": 0}, batch, None)[0] for w in ((), ("logit_bias",))]
    assert values[0] == values[1]


def test_a_negative_chunk_is_refused():
    config = get_config().objective
    config.update({"name": "clip", "chunk": -1})
    with pytest.raises(UserError, match=r"objective\.chunk=-1"):
        objectives.make(config, num_classes=0)

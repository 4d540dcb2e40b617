"""The file of a tuned head keeps everything, NumPy alone can apply it, and a damaged one raises an error."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Form, make_head
from nml_jax.tuning import head_file
from nml_jax.tuning.head_file import TunedHead

D, K = 8, 3
FORMS = [Form(False), Form(True, 2), Form(True, 2, depth=2, residual=False, norm="layer"), Form(True, 1, norm="none")]


def make(form=FORMS[1], classes=("ant", "bee", "cat"), about=None, standard=True):
    """Make a head with random values everywhere."""
    params, state = make_head(form, K).init(jax.random.key(0), D)
    state = {**state, "input": {"mean": np.zeros(D), "scale": np.ones(D)}} if standard else state
    rng = np.random.default_rng(1)
    filled = [jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), t) for t in (params, state)]
    return TunedHead(form, *filled, classes, about or {"method": "nmtune", "hyper": {"lr": 0.01}, "preset": None})


def features(n=5):
    return np.random.default_rng(2).normal(size=(n, D)).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_a_head_survives_its_file(tmp_path, form):
    before = make(form)
    before.save(tmp_path / "made" / "head.safetensors")
    after = head_file.load(tmp_path / "made" / "head.safetensors")
    assert (after.form, after.classes, after.about) == (before.form, before.classes, before.about)
    assert (after.num_classes, after.dim) == (K, D)
    assert jax.tree.structure(after.params) == jax.tree.structure(before.params)
    for got, want in zip(after.outputs(features()), before.outputs(features()), strict=True):
        np.testing.assert_array_equal(got, want)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["head.safetensors"]


@pytest.mark.parametrize("classes", [(3, 5, 9), ("a", "ü", "c d"), (0.5, 1.5, 2.5)])
def test_classes_keep_their_type(tmp_path, classes):
    make(classes=head_file.classes_to_json(np.array(classes))).save(tmp_path / "h")
    found = head_file.load(tmp_path / "h").classes
    assert found == classes
    assert [type(c) for c in found] == [type(c) for c in classes]


def test_boolean_classes_and_none(tmp_path):
    assert head_file.classes_to_json(np.array([False, True])) == (False, True)
    params = {"classifier": {"kernel": np.zeros((D, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    TunedHead(FORMS[0], params, {}, head_file.classes_to_json(np.array([False, True]))).save(tmp_path / "h")
    assert [c is True for c in head_file.load(tmp_path / "h").classes] == [False, True]
    TunedHead(FORMS[0], params, {}).save(tmp_path / "h")  # overwrites; a head without names has numbers
    assert head_file.load(tmp_path / "h").classes == (0, 1)


def test_names_of_the_columns(tmp_path):
    names = tuple(f"f{i}" for i in range(D))
    dataclasses.replace(make(), columns=names).save(tmp_path / "h")
    assert head_file.load(tmp_path / "h").columns == names
    (tmp_path / "h").write_bytes(change_meta(columns=None)((tmp_path / "h").read_bytes()))  # of an earlier version
    assert head_file.load(tmp_path / "h").columns == ()
    (tmp_path / "h").write_bytes(change_meta(columns='[{}, "b"]')((tmp_path / "h").read_bytes()))
    with pytest.raises(UserError, match="names columns that are not text"):
        head_file.load(tmp_path / "h")


@pytest.mark.parametrize("kind", ["datetime64[D]", "datetime64[ns]", "S", "complex"])
def test_classes_of_types_unknown_to_json(tmp_path, kind):
    classes = head_file.classes_to_json(np.array(["2020", "2021", "2022"]).astype(kind))
    with pytest.raises(UserError, match=r"cannot be saved with the class .*2020") as e:
        make(classes=classes).save(tmp_path / "h")
    assert "astype(str)" in e.value.cure
    assert not list(tmp_path.iterdir())


def test_probabilities():
    logits = np.array([[0.0, np.log(3.0), -np.inf], [1e4, 0.0, 1e4]])
    np.testing.assert_allclose(make().probabilities(logits), [[0.25, 0.75, 0], [0.5, 0, 0.5]], rtol=1e-15)
    with pytest.raises(UserError, match="the scores of a ridge head are not logits"):
        make(about={"method": "ridge"}).probabilities(logits)


def apply(path, F):
    """Predict with a head of the default architecture, by NumPy and the file alone."""
    t = safetensors.numpy.load_file(path)
    with safe_open(path, "numpy") as file:
        meta = file.metadata()
    x = (F - t["state/input/mean"]) / t["state/input/scale"]
    h = x @ t["dense1/kernel"] + t["dense1/bias"]
    h = (h - t["state/norm/mean"]) / np.sqrt(t["state/norm/var"] + float(meta["epsilon"]))
    h = np.maximum(h * t["norm/scale"] + t["norm/bias"], 0)
    z = t["scale"] * (h @ t["dense2/kernel"] + t["dense2/bias"]) + x
    logits = z @ t["classifier/kernel"] + t["classifier/bias"]
    return z, logits, np.array(json.loads(meta["classes"]))[logits.argmax(1)]


def test_numpy_alone_applies_the_file(tmp_path):
    before = make()
    before.save(tmp_path / "h.safetensors")
    z, logits, names = apply(tmp_path / "h.safetensors", features(700))
    Z, want = before.outputs(features(700))
    np.testing.assert_allclose(z, Z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    assert set(names) <= {"ant", "bee", "cat"}


def truncate(raw):
    return raw[: len(raw) // 2]


def flip_bit(raw):
    return raw[:8] + bytes([raw[8] ^ 1]) + raw[9:]  # the opening brace of the header


def lengthen_header(raw):
    return raw[:1] + bytes([raw[1] ^ 0x80]) + raw[2:]  # its length


def change_meta(**meta):
    def rewrite(raw):
        tensors, header = safetensors.numpy.load(raw), json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        # Without the SHA-256, as in a file of an earlier version or a forged one.
        kept = {k: v for k, v in {**header["__metadata__"], "sha256": None, **meta}.items() if v is not None}
        return safetensors.numpy.save(tensors, metadata=kept)

    return rewrite


def drop_metadata(raw):
    return safetensors.numpy.save(safetensors.numpy.load(raw))


def replace_tensor(name, value):
    """Return a function that replaces one tensor in a file; None removes it."""

    def rewrite(raw):
        tensors = {k: v for k, v in safetensors.numpy.load(raw).items() if k != name}
        tensors |= {} if value is None else {name: np.array(value, np.float32)}
        return change_meta()(reseal(raw, tensors))

    return rewrite


def reseal(raw, tensors):
    """Put other tensors under the metadata of a file."""
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return safetensors.numpy.save(tensors, metadata=header["__metadata__"])


def drop_classifier(raw):
    tensors = {k: v for k, v in safetensors.numpy.load(raw).items() if not k.startswith("classifier")}
    return change_meta()(reseal(raw, tensors))


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (truncate, "is damaged"),
        (flip_bit, "is damaged"),
        (lengthen_header, "is damaged"),
        (lambda raw: b"", "is damaged"),
        (lambda raw: b"PK\x03\x04" + bytes(64), "is damaged"),
        (change_meta(format="nml_jax head 2"), "its format is 'nml_jax head 2'"),
        (drop_metadata, "its format is None"),
        (change_meta(sha257="0"), "have a key 'sha257'"),
        (change_meta(sha256="0" * 64), "SHA-256 differs"),
        (lambda raw: reseal(raw, safetensors.numpy.load(raw) | {"scale": np.ones(1, np.float32)}), "SHA-256 differs"),
        (change_meta(form=None), "is damaged"),
        (change_meta(about="[" * 100_000), "nested too deeply"),
        (change_meta(form='{"mlp": true, "heads": 8}'), "is damaged"),
        (change_meta(form='{"mlp": true, "depth": 10000000}'), "describes: depth 10,000,000 and width 4 in"),
        (change_meta(form='{"mlp": true, "width": 1000000000}'), "describes: depth 1 and width 1,000,000,000 in"),
        (change_meta(form='{"mlp": true, "width": 2.0}'), "its form is"),
        (change_meta(about="[" * 100_000), "is damaged"),
        (change_meta(classes='["a", "b"]'), "names 2 classes for 3 logits"),
        (change_meta(classes="[1, 2"), "is damaged"),
        (change_meta(classes='"abc"'), "does not name its classes"),
        (change_meta(classes="[[1], [2], [3]]"), "does not name its classes"),
        (change_meta(about="[]"), "or its origin"),
        (change_meta(classes='["a", "b", "a"]'), "names a class twice"),
        (change_meta(classes='["a", "b", "\\ud800"]'), "is damaged"),
        (change_meta(columns='["a", "b", "c", "d", "e", "f", "g", "a"]'), "names a column twice"),
        (change_meta(columns='["a"]'), "names 1 columns for 8 features"),
        (drop_classifier, "is damaged"),
        (replace_tensor("state/input/scale", None), "describes: state/input/scale"),
        (replace_tensor("state/input/mean", np.zeros(1)), "describes: state/input/mean"),
        (replace_tensor("state/input/more", np.zeros(D)), "describes: state/input/more"),
        (replace_tensor("state/input/scale", np.zeros(D)), "state/input/scale holds an invalid value"),
        (replace_tensor("classifier/bias", [0, np.nan, 0]), "classifier/bias holds"),
        (replace_tensor("dense1/kernel", np.full((D, 2 * D), np.inf)), "dense1/kernel holds"),
        (replace_tensor("state", np.zeros(1)), "is damaged"),
    ],
)
def test_a_damaged_file(tmp_path, damage, cause):
    make().save(tmp_path / "h")
    (tmp_path / "h").write_bytes(damage((tmp_path / "h").read_bytes()))
    with pytest.raises(UserError, match=cause) as e:
        head_file.load(tmp_path / "h")
    assert e.value.cure
    assert "\n" not in e.value.cause + e.value.cure


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    make().save(tmp_path / "h")
    raw = (tmp_path / "h").read_bytes()
    before, end = head_file.load(tmp_path / "h"), 8 + int.from_bytes(raw[:8], "little")
    drawn = np.random.default_rng(0).integers(8 * end, 8 * len(raw), 100).tolist()
    for bit in [*range(0, 8 * end, 5), *drawn]:
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "h").write_bytes(flipped)
        cause, after = "", None
        try:
            after = head_file.load(tmp_path / "h")
        except UserError as e:
            cause = e.cause
        if after is None:
            assert str(tmp_path / "h") in cause
            assert "\n" not in cause
        else:  # such as "\u00FC" for "\u00fc"
            assert bit < 8 * end
            assert (after.classes, after.about, after.form) == (before.classes, before.about, before.form)


def test_a_head_without_a_hash_is_loaded_and_that_is_said(tmp_path, capsys):
    make().save(tmp_path / "h")
    head_file.load(tmp_path / "h")
    assert not capsys.readouterr().err
    (tmp_path / "h").write_bytes(change_meta()((tmp_path / "h").read_bytes()))
    assert head_file.load(tmp_path / "h").classes == ("ant", "bee", "cat")
    assert "before heads had a SHA-256" in capsys.readouterr().err


def test_equal_heads_are_equal_byte_for_byte(tmp_path):
    about = {"method": "nmtune", "hyper": {"lr": 0.01}, "preset": None}
    make(about=about).save(tmp_path / "a")
    make(about=about).save(tmp_path / "b")
    raw = (tmp_path / "a").read_bytes()
    assert (tmp_path / "b").read_bytes() == raw
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match="there is no head at"):
            head_file.load(path)


def test_a_folder_that_cannot_be_rewrite(tmp_path):
    with pytest.raises(UserError, match="it is a folder"):
        make().save(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        make().save(tmp_path / "file" / "h")


def test_a_temperature_stays_with_the_head(tmp_path: Path):
    """It scales probabilities and no prediction. A head without one is written as before."""
    rng = np.random.default_rng(0)
    params = {"classifier": {"kernel": rng.normal(size=(4, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}}
    plain = TunedHead(Form(mlp=False), params, {})
    warm = dataclasses.replace(plain, temperature=2.5)
    for name, head in (("plain", plain), ("warm", warm)):
        head.save(tmp_path / name)
    again = head_file.load(tmp_path / "warm")
    assert again.temperature == 2.5
    assert b"temperature" not in (tmp_path / "plain").read_bytes()
    X = rng.normal(size=(20, 4)).astype(np.float32)
    logits = again.outputs(X)[1]
    np.testing.assert_array_equal(logits, plain.outputs(X)[1])
    odds = np.exp(logits.astype(float) / 2.5)
    np.testing.assert_allclose(again.probabilities(logits), odds / odds.sum(1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(np.exp(again.log_probabilities(logits)), again.probabilities(logits), rtol=1e-12)
    np.testing.assert_array_equal(again.probabilities(logits).argmax(1), plain.probabilities(logits).argmax(1))
    data = (tmp_path / "warm").read_bytes().replace(b'"temperature":"2.5"', b'"temperature":"0.0"')
    (tmp_path / "warm").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        head_file.load(tmp_path / "warm")

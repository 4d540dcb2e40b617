import hashlib
import json

import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.noise import CaptionSwap, Ledger, corrupt_labels, swap_captions
from tests.noise.draws import draw_labels, sha


def test_ledger_by_hand():
    ledger = Ledger.from_labels([0, 0, 1, 1, 2], [0, 1, 1, 1, 0], num_classes=3, kind="symmetric", asked=0.3, seed=4)
    assert ledger == Ledger(
        kind="symmetric",
        seed=4,
        asked=0.3,
        realised=0.4,
        n=5,
        count=2,
        noisy_sha256=sha(np.array([0, 1, 1, 1, 0])),
        clean_sha256=sha(np.array([0, 0, 1, 1, 2])),
        corrupted=(1, 0, 1),
        transitions=((1, 1, 0), (0, 2, 0), (1, 0, 0)),
    )


def test_ledger_of_many_classes_keeps_a_summary(monkeypatch):
    clean = draw_labels(40_000, 101)
    noisy = corrupt_labels(clean, num_classes=101, rate=0.1, seed=0)
    ledger = Ledger.from_labels(clean, noisy, num_classes=101, kind="symmetric", asked=0.1, seed=0)
    assert ledger.transitions is None
    assert ledger.corrupted == tuple(np.bincount(clean[clean != noisy], minlength=101))
    assert (ledger.count, ledger.realised) == (4000, 0.1)
    assert ledger.noisy_sha256 == sha(noisy)


def test_ledger_of_nothing():
    ledger = Ledger.from_labels(np.zeros(0, int), np.zeros(0, int), num_classes=2, kind="pair", asked=0.5, seed=0)
    assert (ledger.n, ledger.count, ledger.realised, ledger.transitions) == (0, 0, 0.0, ((0, 0), (0, 0)))


def test_ledger_of_captions():
    swap, captions = CaptionSwap(n=20_000, rate=0.3, seed=1), [f"a photo of {i} ä" for i in range(20_000)]
    ledger = Ledger.from_captions(swap, iter(captions), unchanged=3)
    texts = [caption.encode() for caption in captions]
    assert ledger == Ledger(
        kind="caption_swap",
        seed=1,
        asked=0.3,
        realised=0.3,
        n=20_000,
        count=6000,
        noisy_sha256=sha(swap_captions(np.arange(20_000), n=20_000, rate=0.3, seed=1)),
        clean_sha256=hashlib.sha256(b"".join(len(t).to_bytes(8, "little") + t for t in texts)).hexdigest(),
        unchanged=3,
    )
    assert Ledger.from_captions(swap, texts, unchanged=3) == ledger
    with pytest.raises(UserError, match="19999 captions for 20000 records"):
        Ledger.from_captions(swap, captions[1:])


@pytest.mark.parametrize("kind", ["labels", "captions"])
def test_ledger_goes_through_json(kind: str, tmp_path):
    if kind == "labels":
        ledger = Ledger.from_labels(
            [0, 1], [1, 1], num_classes=np.int64(2), kind="labels", asked=np.float32(0.1), seed=np.int64(3)
        )
    else:
        ledger = Ledger.from_captions(CaptionSwap(n=np.int64(2), rate=1, seed=np.int32(0)), ["a", b"b"])
    path = tmp_path / "noise.json"
    path.write_text(json.dumps(ledger.to_dict()))
    assert Ledger.read(path) == ledger
    assert Ledger.from_dict(ledger.to_dict()) == ledger
    Ledger.read(path).check_same(ledger, "here")


def test_a_ledger_that_differs_is_refused():
    clean = draw_labels(100, 3)
    make = {"num_classes": 3, "kind": "symmetric", "asked": 0.1}
    mine, theirs = (
        Ledger.from_labels(clean, corrupt_labels(clean, num_classes=3, rate=0.1, seed=seed), seed=seed, **make)
        for seed in (0, 1)
    )
    with pytest.raises(UserError) as e:
        mine.check_same(theirs, "runs/x/noise.json")
    assert e.value.cause.startswith("runs/x/noise.json has another noise ledger: seed 1 there, 0 here; noisy_sha256 ")
    assert "clean_sha256" not in e.value.cause
    assert "\n" not in e.value.cause


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"kind": "pair", "colour": 1}', ""])
def test_a_damaged_ledger(text: str, tmp_path):
    (tmp_path / "noise.json").write_text(text)
    with pytest.raises(UserError, match="not a noise ledger"):
        Ledger.read(tmp_path / "noise.json")

"""Test tokenizers of folders against the ids of transformers' own, and what is wrong with folders."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nml_jax.data.text.folders import TextTokenizer, check_size
from nml_jax.errors import UserError

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_folders.py"))))
STORED = json.loads(golden.FILE.read_text())


def list_tokens(table, i: int) -> tuple[list[int], list[int]]:
    ids = table.ids[table.starts[i] : table.starts[i + 1]].tolist()
    return ids, [int(place >= table.seconds[i]) for place in range(len(ids))]


@pytest.mark.parametrize("kind", golden.KINDS)
def test_ids_and_types_are_those_of_transformers(kind: str, tmp_path: Path):
    """Single texts and pairs, whole and cut, from the vocabulary, and from a tokenizer.json that cuts and pads."""
    golden.write_folder(kind, tmp_path)
    for once in (False, True):
        if once:
            own = TextTokenizer(tmp_path, 64)._own
            own.enable_truncation(5)
            own.enable_padding(length=9)
            own.save(str(tmp_path / "tokenizer.json"))
        for length in golden.LENGTHS:
            tokenizer, want = TextTokenizer(tmp_path, length), STORED[f"{kind} {length}"]
            for texts in ([(text,) for text in golden.TEXTS], list(golden.PAIRS)):
                want, mine = want[len(texts) :], want[: len(texts)]
                rows = [i for i, (ids, _) in enumerate(mine) if ids]
                table = tokenizer([texts[i] for i in rows])
                for place, i in enumerate(rows):
                    ids, types = list_tokens(table, place)
                    assert ids == mine[i][0], texts[i]
                    assert mine[i][1] in (None, types), texts[i]  # only BERT has types
                assert table.lengths.max() <= length


def test_what_is_cut_and_what_is_special_is_counted(tmp_path: Path):
    golden.write_folder("bert", tmp_path)
    texts = [("a [SEP] b",), ("x y z x y z x y z",), ("hello",)]
    table = TextTokenizer(tmp_path, 8)(texts)
    assert (table.cut, table.special, len(table.lengths)) == (1, 1, 3)
    literal = TextTokenizer(tmp_path, 64, literal=True)
    sep = literal._own.get_vocab()["[SEP]"]
    assert list_tokens(literal(texts), 0)[0].count(sep) == 1
    assert literal(texts).special == 0
    assert len({TextTokenizer(tmp_path, n).fingerprint for n in (8, 9)} | {literal.fingerprint}) == 3


def test_a_separator_joins_pairs_of_gpt2_and_texts_without_tokens_are_refused(tmp_path: Path):
    golden.write_folder("gpt2", tmp_path)
    end = TextTokenizer(tmp_path, 64)._own.token_to_id("<|endoftext|>")
    plain, joined = (TextTokenizer(tmp_path, 64, separator=s)([("a", "b")]) for s in ("", "<|endoftext|>"))
    a, b = list_tokens(plain, 0)[0]
    assert list_tokens(joined, 0)[0] == [a, end, b]
    cut = TextTokenizer(tmp_path, 4, separator="<|endoftext|>")([("xyzxyz", "b")])
    assert list_tokens(cut, 0)[0][2:] == [end, b]
    with pytest.raises(UserError, match=r"row 1 \(''\) has no tokens"):
        TextTokenizer(tmp_path, 64)([("a",), ("",)])
    with pytest.raises(UserError, match=r"texts\.separator is '<end>'"):
        TextTokenizer(tmp_path, 64, separator="<end>")


def test_batches_are_padded_on_the_right_and_filled(tmp_path: Path):
    golden.write_folder("bert", tmp_path)
    table = TextTokenizer(tmp_path, 64)([("hello", "a"), ("a b",)])
    batch = table.make_batch(np.array([1, 0]), 3, 8)
    np.testing.assert_array_equal(batch["length"], [4, 5, 0])
    np.testing.assert_array_equal(batch["second"], [8, 3, 8])
    np.testing.assert_array_equal(batch["tokens"][0], [*list_tokens(table, 1)[0], 0, 0, 0, 0])
    assert not batch["tokens"][2].any()


def test_bad_folders(tmp_path: Path):
    with pytest.raises(UserError, match="no folder with a tokenizer"):
        TextTokenizer(tmp_path / "none", 64)
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        TextTokenizer(tmp_path, 64)
    golden.write_folder("bert", tmp_path)
    with pytest.raises(UserError, match=r"texts.length is 4"):
        TextTokenizer(tmp_path, 4)
    tokenizer = TextTokenizer(tmp_path, 64)
    check_size(tokenizer, tokenizer.size)
    with pytest.raises(UserError, match=f"the model {tokenizer.size - 1} embeddings"):
        check_size(tokenizer, tokenizer.size - 1)
    text = (tmp_path / "vocab.txt").read_text("utf-8")
    (tmp_path / "vocab.txt").write_text(text + "hello\n", "utf-8")
    with pytest.raises(UserError, match="holds 'hello' twice, in lines"):
        TextTokenizer(tmp_path, 64)
    (tmp_path / "vocab.txt").write_text(text.replace("[MASK]\n", ""), "utf-8")
    with pytest.raises(UserError, match=r"lacks the special token '\[MASK\]'"):
        TextTokenizer(tmp_path, 64)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "nothing"}}')
    with pytest.raises(UserError, match="is not a tokenizer"):
        TextTokenizer(tmp_path, 64)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="is not a mapping"):
        TextTokenizer(tmp_path, 64)

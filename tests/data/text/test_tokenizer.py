import copy
import gzip
import hashlib
import importlib.util
import itertools
import json
import pickle
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import ftfy
import numpy as np
import pytest

from nml_jax import tokenizer as command
from nml_jax.data.sources import texts
from nml_jax.data.text import tokenizer
from nml_jax.errors import UserError

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_tokenizer.py"))))
PUBLISHED = json.loads(golden.FILE.read_text("utf-8"))["ids"]
CORPUS = [caption for caption in golden.CAPTIONS if not caption.startswith("\ud83d")] + golden.SENTENCES * 2


def expected() -> np.ndarray:
    """Return open_clip's ids of the golden captions, int32 [N, 77]."""
    out = np.zeros((len(PUBLISHED), 77), np.int32)
    for row, ids in zip(out, PUBLISHED, strict=True):
        row[: len(ids)] = ids
    return out


def openai_layout(vocabulary: str, **changes) -> dict:
    """Return the tokenizer.json of openai/clip-vit-base-patch32 with the merges of a vocabulary file."""
    merges = [line.split() for line in vocabulary.split("\n")[1 : 49152 - 256 - 2 + 1]]
    byte = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256 + 68))]
    tokens = [*byte, *(b + "</w>" for b in byte), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    start, end = len(tokens) - 2, len(tokens) - 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": True}
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    blanks = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": start, "content": "<|startoftext|>", "normalized": True, **flags},
            {"id": end, "content": "<|endoftext|>", "normalized": False, **flags},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, blanks, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["<|endoftext|>", end],
            "cls": ["<|startoftext|>", start],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "dropout": None,
            "unk_token": "<|endoftext|>",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [" ".join(merge) for merge in merges if merge],
        },
    } | changes


def write(path: Path, content: str | dict) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return str(path)


@pytest.fixture
def small() -> tokenizer.Tokenizer:
    return tokenizer.load(str(golden.VOCABULARY), 77)


# --- the ids of open_clip


def test_vocabulary_file_gives_the_ids_of_open_clip(small, tmp_path):
    packed = tmp_path / "vocabulary.txt.gz"
    packed.write_bytes(gzip.compress(golden.VOCABULARY.read_bytes()))
    assert (small.start, small.end, small.vocab_size) == (713, 714, 715)
    for one in (small, tokenizer.load(str(packed), 77)):
        ids = one(golden.CAPTIONS)
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, expected())
        assert one.fingerprint == small.fingerprint


def test_tokenizer_json_in_the_layout_of_openai_gives_the_ids_of_open_clip(tmp_path):
    path = write(tmp_path / "tokenizer.json", openai_layout(golden.VOCABULARY.read_text("utf-8")))
    np.testing.assert_array_equal(tokenizer.load(path, 77)(golden.CAPTIONS), expected())


def test_real_captions_have_the_ids_of_open_clip(shared_data, tmp_path):
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("no open_clip: it is a reference, not a dependency")
    published = golden.open_clip()
    vocabulary = published.default_bpe()
    load = lambda *names: dict(np.load(shared_data.joinpath(*names)))  # noqa: E731
    emoji = load("emoji", "meta.npz")
    drawn = ["".join(chr(int(code, 16)) for code in codes.split("-")) for codes in emoji["hexcode"]]
    sets = {
        "flickr1k": load("flickr1k", "flickr800.npz")["captions"].ravel().tolist(),
        "emoji": [f"{c} {n}: {t}" for c, n, t in zip(drawn, emoji["name"], emoji["tags"], strict=True)],
        "cifar10": load("cifar10", "meta.npz")["keywords"].tolist(),
        "sst2": (shared_data / "text" / "stsa.binary.train").read_text("utf-8").splitlines(),
        "trec": (shared_data / "text" / "TREC.train.all").read_text("latin-1").splitlines(),
        "mojibake": (shared_data / "text" / "TREC.train.all").read_bytes().decode("cp1252", "replace").splitlines(),
        "golden": golden.CAPTIONS,
    }
    sets["escaped"] = [
        caption.replace("'", "&#39;").replace(" ", "&nbsp;") + "&eacute;" for caption in sets["flickr1k"]
    ]
    sets["long"] = [" ".join(sets["flickr1k"][i : i + 9]) for i in range(0, 1800, 9)]
    captions = [caption for of_set in sets.values() for caption in of_set]
    theirs = published.SimpleTokenizer(vocabulary)(captions).numpy()
    text = gzip.decompress(Path(vocabulary).read_bytes()).decode("utf-8")
    layout = write(tmp_path / "tokenizer.json", openai_layout(text))
    for path in (vocabulary, layout):
        ours = tokenizer.load(path, 77)(captions)
        different = [caption for caption, a, b in zip(captions, ours, theirs, strict=True) if (a != b).any()]
        assert different == []
    print(
        {name: len(of_set) for name, of_set in sets.items()}, len(captions), "captions,", len(set(captions)), "distinct"
    )
    assert len(set(captions)) > 2000


def test_another_tokenizer_json_is_used_as_it_is(tmp_path):
    vocab = {token: i for i, token in enumerate(["?", "a", "dog", "CAT", "<|startoftext|>", "<|endoftext|>"])}
    words = {"type": "WordLevel", "vocab": vocab, "unk_token": "?"}
    upper = {"type": "Replace", "pattern": {"String": "cat"}, "content": "CAT"}
    layout = {"version": "1.0", "added_tokens": [], "normalizer": upper, "pre_tokenizer": {"type": "Whitespace"}}
    path = write(tmp_path / "a.json", layout | {"model": words})
    np.testing.assert_array_equal(
        tokenizer.load(path, 6)(["A Dog, a Cat", "cat"]), [[4, 1, 2, 0, 1, 5], [4, 3, 5, 0, 0, 0]]
    )


# --- clean-up


def test_clean_up_of_plain_ascii_needs_no_ftfy():
    plain = [chr(c) for c in range(128) if chr(c).isprintable() and chr(c) != "&"]
    for pair in itertools.product(plain, repeat=2):
        assert ftfy.fix_text("".join(pair)) == "".join(pair)
    caption = "".join(map("".join, itertools.product(plain, repeat=2)))
    assert ftfy.fix_text(caption) == caption
    assert tokenizer.clean(" The  DOG's <b>tail</b> ") == "the dog's <b>tail</b>"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("AT&amp;amp;T", "at&t"),
        ("&amp;amp;lt;", "<"),
        ("<b> &amp;eacute; &amp;amp;eacute;", "<b> é &eacute;"),  # ftfy leaves entities beside tags: decoded twice
        ("schÃ¶n", "schön"),
        ("e\u0301 E&#769;", "é é"),
        ("a\x1b[31mb\x00\x07c", "abc"),
        ("\ud83d\ude00\ud800", "\U0001f600\ufffd"),
        ("\u3000a\u2003\r\n b\u2028", "a b"),
        ("\x00", ""),
        ("&#0;", "\ufffd"),  # byte 0 pads, so none may be left
    ],
)
def test_clean_up_of_the_rest(text, cleaned):
    assert tokenizer.clean(text) == cleaned


# --- shapes and ids


def test_bytes_are_the_default():
    ids = tokenizer.load("", 6)
    assert (ids.start, ids.end, ids.vocab_size) == (256, 257, 258)
    np.testing.assert_array_equal(
        ids(["É a", "", "<start_of_text>", " ABCD", "ABC"]),
        [
            [256, 0xC3, 0xA9, 32, 97, 257],
            [256, 257, 0, 0, 0, 0],
            [256, ord("<"), ord("s"), ord("t"), ord("a"), 257],
            [256, 97, 98, 99, 100, 257],
            [256, 97, 98, 99, 257, 0],
        ],
    )
    everything = "".join(chr(c) for c in range(32, 0x3000) if c != ord("&"))
    sent = tokenizer.load("", 100_000)([everything])[0]
    assert bytes(sent[1 : sent.argmax()].astype(np.uint8).tolist()).decode("utf-8") == tokenizer.clean(everything)


def test_end_is_kept_and_has_the_highest_id(small):
    for context in (3, 5, 77):
        ids = tokenizer.load(str(golden.VOCABULARY), context)(["the " * n for n in range(80)])
        length = np.minimum(np.arange(80) + 2, context)
        np.testing.assert_array_equal(ids.argmax(1), length - 1)
        np.testing.assert_array_equal(ids.max(1), small.end)
        np.testing.assert_array_equal(ids[:, 0], small.start)
    assert small([]).shape == (0, 77)


def test_copies_and_threads_agree(small):
    batches = [golden.CAPTIONS[i:] + golden.CAPTIONS[:i] for i in range(len(golden.CAPTIONS))]
    copies = [small, pickle.loads(pickle.dumps(small)), copy.deepcopy(small)]
    assert len({one.fingerprint for one in copies}) == 1
    with ThreadPoolExecutor(8) as pool:
        for one in copies:
            for i, ids in enumerate(pool.map(one, batches)):
                np.testing.assert_array_equal(ids, np.roll(expected(), -i, axis=0))


def test_tokenizers_with_other_ids_have_other_fingerprints(small, tmp_path):
    shorter = write(tmp_path / "a.txt", golden.VOCABULARY.read_text("utf-8").rsplit("\n", 2)[0])
    loaded = [small, tokenizer.load(shorter, 77), tokenizer.load(shorter, 76), tokenizer.load("", 77)]
    assert len({one.fingerprint for one in loaded}) == 4


# --- training


def test_training_gives_the_same_file_in_every_process(tmp_path, root):
    corpus = write(
        tmp_path / "corpus.txt", "".join(f"{' '.join(c.encode('utf-8', 'replace').decode().split())}\n" for c in CORPUS)
    )
    sums = set()
    for i in range(3):
        out = tmp_path / f"{i}.json"
        command = [sys.executable, "-m", "nml_jax.tokenizer", "train", corpus, str(out), "--vocab", "700"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0] == f"{out}: 700 tokens"
        sums.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(sums) == 1


def test_a_trained_tokenizer_loads_and_compresses(tmp_path):
    path = write(tmp_path / "a.json", tokenizer.train(golden.SENTENCES * 2, 600))
    trained = tokenizer.load(path, 77)
    assert (trained.start, trained.end, trained.vocab_size) == (598, 599, 600)
    plain, words = golden.SENTENCES[0], golden.SENTENCES[0].split()
    assert len(words) <= trained([plain])[0].argmax() - 1 < len(plain) / 2
    rare = trained(["\U0001f600 ÿ <end_of_text>"])[0]  # bytes that the corpus lacks; a token's name, as in open_clip
    assert rare[1:5].max() < 512
    assert (rare == 599).sum() == 2


def test_small_corpus_gives_a_small_vocabulary(tmp_path):
    path = write(tmp_path / "a.json", tokenizer.train(["dog dog", "cat"], 600))
    assert tokenizer.load(path, 5).vocab_size == 512 + 2 + 2  # do, dog</w>; pairs that occur once are not merged
    np.testing.assert_array_equal(tokenizer.load(path, 5)(["Dog"]), [[514, 513, 515, 0, 0]])


def test_trained_file_means_the_same_to_the_library(tmp_path):
    """Compare with the library, which lacks only our clean-up."""
    import tokenizers

    path = write(tmp_path / "a.json", tokenizer.train(golden.SENTENCES * 2, 600))
    theirs, ours = tokenizers.Tokenizer.from_file(path), tokenizer.load(path, 77)
    for caption in golden.SENTENCES:
        ids = theirs.encode(caption.upper()).ids
        np.testing.assert_array_equal(ours([caption])[0, : len(ids)], ids)
        assert theirs.decode(ids).split() == theirs.decode(theirs.encode(caption).ids).split()


def test_merges_follow_the_definition(tmp_path):
    """Check hand-made counts: l-o four times, w-e twice, lo-w twice."""
    out = json.loads(tokenizer.train(["low low lots lot", "we We"], 514 + 3))
    assert out["model"]["merges"][0] == ["l", "o"]
    assert len(out["model"]["vocab"]) == out["model"]["vocab"]["<end_of_text>"] + 1 == 517


def test_prepared_directories_are_corpora(tmp_path):
    folder = tmp_path / "pairs" / "supervision"
    folder.mkdir(parents=True)
    texts.write(folder / "train.captions", [texts.join(["a dog", "Two\ndogs"]), "a cat"])
    texts.write(folder / "val.captions", ["a bird"])
    lines = write(tmp_path / "a.txt", "first\nsecond")
    pairs = str(tmp_path / "pairs")
    assert list(command.read_captions([f"{pairs}:train"])) == ["a dog", "Two\ndogs", "a cat"]
    assert list(command.read_captions([lines, pairs])) == ["first\n", "second", "a dog", "Two\ndogs", "a cat", "a bird"]


# --- bad input


def run_refused(*args: str, capsys) -> str:
    assert command.main(["train", *args]) == 2
    cause, cure = capsys.readouterr().err.splitlines()
    assert cure.startswith("  cure: ")
    return cause


def test_training_refuses_bad_input_in_two_lines(tmp_path, capsys):
    good, out = write(tmp_path / "good.txt", "a dog\na dog\n"), str(tmp_path / "out.json")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"a dog\ncaf\xe9\n")
    (tmp_path / "empty").mkdir()
    blank = write(tmp_path / "blank.txt", "\n \n")
    assert "is neither a text file" in run_refused(str(tmp_path / "none.txt"), out, capsys=capsys)
    assert "is neither a text file" in run_refused(str(tmp_path / "empty"), out, capsys=capsys)
    assert "is neither a text file" in run_refused(f"{good}:train", out, capsys=capsys)
    assert "can't decode byte 0xe9" in run_refused(good, str(latin), out, capsys=capsys)
    assert "no pair of characters occurs twice" in run_refused(blank, out, capsys=capsys)
    assert "--vocab=514 leaves no room" in run_refused(good, out, "--vocab", "514", capsys=capsys)
    assert "does not end in .json" in run_refused(good, blank, capsys=capsys)
    assert "exists already" in run_refused(good, write(tmp_path / "there.json", ""), capsys=capsys)
    assert "cannot write" in run_refused(good, f"{good}/out.json", capsys=capsys)
    assert not Path(out).exists()


def test_other_files_are_refused(tmp_path):
    layout = openai_layout(golden.VOCABULARY.read_text("utf-8"))
    vocab = layout["model"]["vocab"]
    nameless = layout["model"] | {
        "vocab": {k: v for k, v in vocab.items() if k != "<|startoftext|>"},
        "unk_token": None,
    }
    later = layout["model"] | {"vocab": vocab | {"[PAD]": len(vocab)}}
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(golden.VOCABULARY.read_bytes())[:-20])
    packed = bytearray(gzip.compress(golden.VOCABULARY.read_bytes()))
    packed[40:60] = bytes(20)
    (tmp_path / "damaged.txt.gz").write_bytes(packed)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    files = {
        "a.bin": ("", "is not a tokenizer"),
        "absent.json": (None, "cannot be read"),
        "cut.txt.gz": (None, "cannot be read"),
        "damaged.txt.gz": (None, "cannot be read"),
        "binary.txt": (None, "cannot be read"),
        "prose.txt": ("a line\na line of more words\n", "line 2 is not a pair"),
        "pairs.txt": ("a line\nred dog\n", "is not a tokenizer"),
        "half.json": (json.dumps(layout)[:-5], "is not a tokenizer"),
        "list.json": ("[]", "is not a tokenizer"),
        "random.json": (layout | {"model": layout["model"] | {"dropout": 0.1}}, "drops merges at random"),
        "nameless.json": (layout | {"model": nameless, "added_tokens": [], "post_processor": None}, "lacks a token"),
        "later.json": (layout | {"model": later}, "the end token has id 714, but the highest id is 715"),
    }
    for name, (content, cause) in files.items():
        if content is not None:
            write(tmp_path / name, content)
        with pytest.raises(UserError, match=cause) as e:
            tokenizer.load(str(tmp_path / name), 77)
        assert len(str(e.value).splitlines()) == 2, str(e.value)


def test_vocabulary_must_match_the_model(small):
    tokenizer.check(small, 715)
    with pytest.raises(UserError, match=r"has 715 tokens, the model 49408[^\n]*\n.*--config.model.text_vocab=715"):
        tokenizer.check(small, 49408)
    with pytest.raises(UserError, match="text_context must be at least 3, got 2"):
        tokenizer.load("", 2)


def test_a_panic_of_the_library_is_two_lines(monkeypatch, tmp_path):
    panic = type("PanicException", (BaseException,), {})

    def fail(text):
        raise panic("range end index 18446744073709551615\nout of range")

    (tmp_path / "t.json").write_text("{}")
    monkeypatch.setattr(tokenizer.tokenizers.Tokenizer, "from_str", fail)
    with pytest.raises(UserError, match="is not a tokenizer: range end index 18446744073709551615 out of range"):
        tokenizer.load(str(tmp_path / "t.json"), 8)


def test_words_that_would_take_hours_are_left_out(tmp_path, capsys):
    (tmp_path / "c.txt").write_text("a cat\n" + "[" * 5001 + " the cat\n" + "b" * 5000 + "\n")
    assert list(command.read_captions([str(tmp_path / "c.txt")])) == ["a cat\n", "the cat", "b" * 5000]
    assert "1 words of more than 5,000 characters are left out" in capsys.readouterr().err

"""Captions to token ids: CLIP's BPE from a vocabulary file, BPE trained from captions, or bytes, which need no file.

Every tokenizer cleans captions as CLIP does (Radford et al. 2021, section 2.4, and the code published with it): ftfy,
HTML entities, white space, lower case.
"""

import gzip
import html
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import tokenizers
from tokenizers import Regex, decoders, normalizers
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer

from nml_jax.errors import UserError
from nml_jax.hashes import hash_text

START, END = "<start_of_text>", "<end_of_text>"
# Names that the two tokens have in tokenizer.json: open_clip's and ours, OpenAI's.
STARTS, ENDS = (START, "<|startoftext|>"), (END, "<|endoftext|>")
ALPHABET = sorted(ByteLevel.alphabet())  # one character for each byte, in the order of CLIP's vocabulary
SUFFIX = "</w>"  # of the last token of a word
PUBLISHED_MERGES = 49152 - 256 - 2  # CLIP uses so many of the 262,144 that its file holds
# CLIP's words. The published code matches it with IGNORECASE, for which ſ is an s, and takes the names of its two
# tokens, where they stand at the beginning of a word, for these tokens.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
EXACT_PATTERN = rf"<[sſ]tart_of_text>|<end_of_text>|'ſ|{PATTERN}"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


class Tokenizer:
    """Captions -> int32 token ids. Picklable; may be called from several threads.

    Args:
        definition: JSON as the tokenizers library reads it, without clean-up, start and end.
        start, end: ids of the two tokens.
        context: tokens of a caption, start and end included.

    Attributes:
        vocab_size: ids are below it. The end token is the last, so that it is where the ids of a caption are highest.
        fingerprint: SHA-256 of the arguments.

    Raises:
        UserError: `context` has no room for start, end and a token between them.
    """

    def __init__(self, definition: str, start: int, end: int, context: int):
        if context < 3:
            raise UserError(
                f"a context of {context} tokens holds no caption", "choose --config.model.text_context >= 3"
            )
        self.start, self.end, self.context, self.vocab_size = start, end, context, end + 1
        self._arguments = (definition, start, end, context)
        self.fingerprint = hash_text(json.dumps(self._arguments))
        self._bpe = tokenizers.Tokenizer.from_str(definition)
        words = json.loads(definition)["pre_tokenizer"] == _words(EXACT_PATTERN)
        self._named = {START: start, END: end} if words else {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Ids int32 [len(texts), context]: start, tokens as far as they fit, end, and zeros behind it."""
        texts = [clean(text) for text in texts]
        out = np.zeros((len(texts), self.context), np.int32)
        for row, text, encoding in zip(out, texts, self._bpe.encode_batch_fast(texts), strict=True):
            ids = encoding.ids
            if any(name in text for name in self._named):
                ids = self._by_word(text)
            ids = [self.start, *ids[: self.context - 2], self.end]
            row[: len(ids)] = ids
        return out

    def _by_word(self, text: str) -> list[int]:
        """Ids of a text in which the start or end token may be a word; BPE cannot know that it is one token."""
        ids = []
        for word, _ in self._bpe.pre_tokenizer.pre_tokenize_str(text):
            ids += [self._named[word]] if word in self._named else [t.id for t in self._bpe.model.tokenize(word)]
        return ids

    def __reduce__(self):
        return Tokenizer, self._arguments


def clean(text: str) -> str:
    """CLIP's clean-up: repair mojibake, decode HTML entities twice, collapse white space, lower-case."""
    # ftfy leaves printable ASCII as it is, and only entities begin with &. It is most captions, and most of the time.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def load(path: str, context: int) -> Tokenizer:
    """The tokenizer in a file, or the one of bytes.

    Args:
        path: "": bytes, 258 ids. A tokenizer.json: OpenAI's, of `train`, or any other with a start token and an end
            token that is the last. Or CLIP's vocabulary as published, bpe_simple_vocab_16e6.txt, also as .txt.gz:
            ids are then those of open_clip.
        context: tokens of a caption.

    Raises:
        UserError: the file cannot be read, or is no such tokenizer.
    """
    if not path:
        return _of_bytes(context)
    name = Path(path).name
    if not name.endswith((".json", ".txt", ".txt.gz")):
        raise UserError(f"{path} is no tokenizer", "give a tokenizer.json, or CLIP's vocabulary as .txt or .txt.gz")
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if name.endswith(".gz") else content).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read: {e}", "check --config.data.tokenizer, or fetch the file anew") from e
    return (_of_json if name.endswith(".json") else _of_merges)(path, text, context)


def check(tokenizer: Tokenizer, vocab: int) -> None:
    """Raises UserError if a model for `vocab` token ids does not match the tokenizer."""
    if tokenizer.vocab_size != vocab:
        raise UserError(
            f"the tokenizer knows {tokenizer.vocab_size} tokens, the model {vocab} (model.text_vocab)",
            f"set --config.model.text_vocab={tokenizer.vocab_size}, or another --config.data.tokenizer",
        )


def train(corpus: Iterable[str], vocab: int) -> str:
    """Train BPE with CLIP's clean-up and words on captions.

    Args:
        vocab: at most so many tokens: the 512 of bytes and of bytes that end a word, merges of pairs that occur at
            least twice, start and end. A small corpus gives fewer.

    Returns:
        The tokenizer.json, in the layout of OpenAI's.

    Raises:
        UserError: `vocab` leaves no room for a merge, or the captions hold no word.
    """
    base = ALPHABET + [token + SUFFIX for token in ALPHABET]
    room = vocab - len(base) - 2
    if room < 1:
        raise UserError(
            f"a vocabulary of {vocab} leaves no room for merges", f"choose --vocab of {len(base) + 3} or more"
        )
    bpe = tokenizers.Tokenizer.from_str(json.dumps(_layout({}, [], EXACT_PATTERN)))
    # Named beforehand, these have the same ids in every run: the library numbers what it meets in the order of a hash
    # table, and breaks ties by number.
    trainer = BpeTrainer(
        vocab_size=len(base) + room,
        min_frequency=2,
        special_tokens=base,
        end_of_word_suffix=SUFFIX,
        show_progress=False,
    )
    bpe.train_from_iterator((clean(text) for text in corpus), trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"][:room]
    if not merges:
        raise UserError("the corpus holds no pair of characters twice", "give more captions")
    tokens = _vocab(merges)
    out = tokenizers.Tokenizer.from_str(json.dumps(_layout(tokens, merges, PATTERN)))
    out.normalizer = normalizers.Sequence([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    out.add_special_tokens([START, END])
    out.post_processor = RobertaProcessing((END, tokens[END]), (START, tokens[START]), False, False)
    out.decoder = decoders.ByteLevel()
    return out.to_str(pretty=True) + "\n"


def _words(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}


def _layout(vocab: dict[str, int], merges: Sequence[Sequence[str]], pattern: str) -> dict[str, Any]:
    model = {"type": "BPE", "end_of_word_suffix": SUFFIX, "vocab": vocab, "merges": merges}
    return {"pre_tokenizer": _words(pattern), "model": model}


def _vocab(merges: Iterable[Sequence[str]]) -> dict[str, int]:
    tokens = [*ALPHABET, *(token + SUFFIX for token in ALPHABET), *map("".join, merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


def _of_bytes(context: int) -> Tokenizer:
    """Ids are the bytes; 0 can pad, for the clean-up leaves none."""
    printable = {byte for byte in range(256) if chr(byte) in ALPHABET}  # stand for themselves, and first
    order = sorted(range(256), key=lambda byte: (byte not in printable, byte))
    model = {"type": "BPE", "vocab": dict(zip(ALPHABET, order, strict=True)), "merges": []}
    return Tokenizer(json.dumps({"pre_tokenizer": BYTE_LEVEL, "model": model}), 256, 257, context)


def _of_merges(path: str, text: str, context: int) -> Tokenizer:
    """One merge a line, after a line that says what the file is. An empty last line is a token, as in open_clip."""
    merges = [line.split() for line in text.split("\n")[1 : PUBLISHED_MERGES + 1]]
    for number, merge in enumerate(merges, 2):
        if len(merge) not in (0, 2):
            raise UserError(f"{path}, line {number} is no pair of tokens", "give CLIP's bpe_simple_vocab_16e6.txt.gz")
    vocab = _vocab(merges)
    definition = json.dumps(_layout(vocab, [merge for merge in merges if merge], EXACT_PATTERN))
    _parse(path, definition)
    return Tokenizer(definition, vocab[START], vocab[END], context)


def _of_json(path: str, text: str, context: int) -> Tokenizer:
    vocab = _parse(path, text).get_vocab()
    start, end = (next((vocab[name] for name in names if name in vocab), None) for names in (STARTS, ENDS))
    cure = "give OpenAI's tokenizer.json of CLIP, or one that python -m nml_jax.tokenizer train writes"
    if start is None or end is None:
        raise UserError(f"{path} lacks a token {' or '.join(STARTS if start is None else ENDS)}", cure)
    if end != (highest := max(vocab.values())):
        raise UserError(f"{path}: the end token has id {end}, but the highest id is {highest}", cure)
    whole = json.loads(text)
    if whole["model"].get("dropout"):
        raise UserError(f"{path} drops merges at random", "set model.dropout to null in it: a caption has one reading")
    # What stands in captions is text; start and end are ours to add.
    added = [token for token in whole.get("added_tokens", ()) if not token["special"]]
    definition = {"added_tokens": added, **{key: whole.get(key) for key in ("normalizer", "pre_tokenizer", "model")}}
    if _is_clip(whole.get("pre_tokenizer")):
        # Our clean-up is what its normaliser stands for, without NFC behind entities.
        definition |= {"normalizer": None, "pre_tokenizer": _words(EXACT_PATTERN)}
    tokenizer = Tokenizer(json.dumps(definition), start, end, context)
    try:
        tokenizer(["a", "1", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{CAT FACE}", "\u732b"])
    except Exception as e:  # as in _parse; some models need a token for what they do not know, and have none
        raise UserError(f"{path} cannot read every text: {e}", cure) from e
    return tokenizer


def _parse(path: str, text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # the library raises nothing more special
        raise UserError(f"{path} is no tokenizer: {e}", "fetch or write the file anew") from e


def _is_clip(pre_tokenizer: dict[str, Any] | None) -> bool:
    first = ((pre_tokenizer or {}).get("pretokenizers") or [{}])[0]
    return first.get("pattern", {}).get("Regex", "").endswith(PATTERN)

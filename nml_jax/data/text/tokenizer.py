"""Convert captions to token ids: CLIP's BPE from a vocabulary file, BPE trained on captions, or bytes without a file.

Every tokenizer cleans captions as CLIP does (Radford et al. 2021, section 2.4, and the published code): ftfy, HTML
entities, white space, lower case.
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
# Names of the two tokens in tokenizer.json: open_clip's and ours, then OpenAI's.
STARTS, ENDS = (START, "<|startoftext|>"), (END, "<|endoftext|>")
ALPHABET = sorted(ByteLevel.alphabet())  # one character for each byte, in the order of CLIP's vocabulary
SUFFIX = "</w>"  # marks the last token of a word
PUBLISHED_MERGES = 49152 - 256 - 2  # CLIP uses only these of the 262,144 merges in its file
PUBLISHED = 49_408  # tokens of CLIP
# CLIP's pattern of a word. The published code ignores case, so ſ counts as s, and reads the names of its two tokens
# at the beginning of a word as these tokens. EXACT_PATTERN does the same.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
EXACT_PATTERN = rf"<[sſ]tart_of_text>|<end_of_text>|'ſ|{PATTERN}"
PANIC = "PanicException"  # what a library in Rust raises where it did not expect an error; no subclass of Exception
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


class Tokenizer:
    """A function from captions to int32 token ids. It can be pickled and called from several threads.

    Args:
        definition: JSON of the tokenizers library, without clean-up, start and end.
        start, end: ids of the two tokens.
        context: number of tokens of a caption, including start and end.

    Attributes:
        vocab_size: number of ids. The end token has the highest id, so argmax finds the end of a caption.
        definition: the argument.
        fingerprint: SHA-256 of the arguments.

    Raises:
        UserError: `context` is below 3: start, end and one token between them.
    """

    def __init__(self, definition: str, start: int, end: int, context: int):
        if context < 3:
            raise UserError(
                f"model.text_context must be at least 3, got {context}", "start and end take two of the tokens"
            )
        self.definition, self.start, self.end, self.context, self.vocab_size = definition, start, end, context, end + 1
        self._arguments = (definition, start, end, context)
        self.fingerprint = hash_text(json.dumps(self._arguments))
        self._bpe = tokenizers.Tokenizer.from_str(definition)
        clip_words = json.loads(definition)["pre_tokenizer"] == _make_pre_tokenizer(EXACT_PATTERN)
        self._special = {START: start, END: end} if clip_words else {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return ids, int32 [len(texts), context]: start, as many tokens as fit, end, then zeros."""
        texts = [clean(text) for text in texts]
        out = np.zeros((len(texts), self.context), np.int32)
        for row, text, encoding in zip(out, texts, self._bpe.encode_batch_fast(texts), strict=True):
            ids = encoding.ids
            if any(name in text for name in self._special):
                ids = self._encode_words(text)
            ids = [self.start, *ids[: self.context - 2], self.end]
            row[: len(ids)] = ids
        return out

    def _encode_words(self, text: str) -> list[int]:
        """Encode a text that contains the start or end token as a word. BPE would split that word."""
        ids = []
        for word, _ in self._bpe.pre_tokenizer.pre_tokenize_str(text):
            ids += [self._special[word]] if word in self._special else [t.id for t in self._bpe.model.tokenize(word)]
        return ids

    @property
    def reads_special(self) -> bool:
        """Whether the names of the start and end token in a caption stand for these tokens."""
        return bool(self._special)

    def find_token(self, number: int) -> str | None:
        """Return the token of this id; None if it has no text, as start and end of the bytes."""
        return self._bpe.id_to_token(number)

    def __reduce__(self):
        return Tokenizer, self._arguments


def clean(text: str) -> str:
    """Clean a caption as CLIP does: repair mojibake, decode HTML entities twice, collapse white space, lower-case."""
    # Most captions are printable ASCII without &. ftfy and unescape would not change them, but take most of the time.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def load(path: str, context: int) -> Tokenizer:
    """Load a tokenizer from a file, or make the one of bytes.

    Args:
        path: one of
            "": bytes, 258 ids;
            a tokenizer.json: OpenAI's, one of `train`, or any other with a start token, and an end token of the highest
            id;
            CLIP's published vocabulary, bpe_simple_vocab_16e6.txt or .txt.gz, which gives the ids of open_clip.
        context: number of tokens of a caption.

    Raises:
        UserError: the file cannot be read, or is not such a tokenizer.
    """
    if not path:
        return _make_byte_tokenizer(context)
    name = Path(path).name
    if not name.endswith((".json", ".txt", ".txt.gz")):
        raise UserError(f"{path} is not a tokenizer", "give a tokenizer.json, or CLIP's vocabulary as .txt or .txt.gz")
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if name.endswith(".gz") else content).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read: {e}", "check --config.data.tokenizer, or get the file again") from e
    return (_parse_json if name.endswith(".json") else _parse_merges)(path, text, context)


def check(tokenizer: Tokenizer, vocab: int) -> None:
    """Raise UserError unless the tokenizer has the `vocab` token ids of the model."""
    if tokenizer.vocab_size != vocab:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab} (model.text_vocab)",
            f"set --config.model.text_vocab={tokenizer.vocab_size}, or another --config.data.tokenizer",
        )


def train(corpus: Iterable[str], vocab: int) -> str:
    """Train BPE on captions, with CLIP's clean-up and words.

    Args:
        vocab: largest number of tokens: 512 for bytes and for bytes that end a word, one for each merge of a pair that
            occurs at least twice, and start and end. A small corpus gives fewer.

    Returns:
        The content of a tokenizer.json in OpenAI's layout.

    Raises:
        UserError: `vocab` leaves no room for a merge, or no pair of characters occurs twice.
    """
    base = ALPHABET + [token + SUFFIX for token in ALPHABET]
    room = vocab - len(base) - 2
    if room < 1:
        raise UserError(f"--vocab={vocab} leaves no room for merges", f"choose --vocab of {len(base) + 3} or more")
    bpe = tokenizers.Tokenizer.from_str(json.dumps(_make_definition({}, [], EXACT_PATTERN)))
    # Special tokens have the same ids in every run. The library numbers other tokens in the order of a hash table and
    # breaks ties by number.
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
        raise UserError("no pair of characters occurs twice in the corpus", "give more captions")
    tokens = _number_tokens(merges)
    out = tokenizers.Tokenizer.from_str(json.dumps(_make_definition(tokens, merges, PATTERN)))
    out.normalizer = normalizers.Sequence([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    out.add_special_tokens([START, END])
    out.post_processor = RobertaProcessing((END, tokens[END]), (START, tokens[START]), False, False)
    out.decoder = decoders.ByteLevel()
    return out.to_str(pretty=True) + "\n"


def _make_pre_tokenizer(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}


def _make_definition(vocab: dict[str, int], merges: Sequence[Sequence[str]], pattern: str) -> dict[str, Any]:
    model = {"type": "BPE", "end_of_word_suffix": SUFFIX, "vocab": vocab, "merges": merges}
    return {"pre_tokenizer": _make_pre_tokenizer(pattern), "model": model}


def _number_tokens(merges: Iterable[Sequence[str]]) -> dict[str, int]:
    tokens = [*ALPHABET, *(token + SUFFIX for token in ALPHABET), *map("".join, merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


def _make_byte_tokenizer(context: int) -> Tokenizer:
    """Make the tokenizer whose ids are the bytes. Byte 0 can pad, because the clean-up removes it from captions."""
    printable = {byte for byte in range(256) if chr(byte) in ALPHABET}  # stand for themselves and come first
    order = sorted(range(256), key=lambda byte: (byte not in printable, byte))
    model = {"type": "BPE", "vocab": dict(zip(ALPHABET, order, strict=True)), "merges": []}
    return Tokenizer(json.dumps({"pre_tokenizer": BYTE_LEVEL, "model": model}), 256, 257, context)


def _parse_merges(path: str, text: str, context: int) -> Tokenizer:
    """Parse CLIP's vocabulary: a title, then one merge per line. An empty last line is a token, as in open_clip."""
    merges = [line.split() for line in text.split("\n")[1 : PUBLISHED_MERGES + 1]]
    for number, merge in enumerate(merges, 2):
        if len(merge) not in (0, 2):
            cure = "give CLIP's bpe_simple_vocab_16e6.txt.gz"
            raise UserError(f"{path}, line {number} is not a pair of tokens", cure)
    vocab = _number_tokens(merges)
    definition = json.dumps(_make_definition(vocab, [merge for merge in merges if merge], EXACT_PATTERN))
    _parse(path, definition)
    return Tokenizer(definition, vocab[START], vocab[END], context)


def _parse_json(path: str, text: str, context: int) -> Tokenizer:
    vocab = _parse(path, text).get_vocab()
    start, end = (next((vocab[name] for name in names if name in vocab), None) for names in (STARTS, ENDS))
    cure = "give OpenAI's tokenizer.json of CLIP, or one that python -m nml_jax.tokenizer train writes"
    if start is None or end is None:
        raise UserError(f"{path} lacks a token {' or '.join(STARTS if start is None else ENDS)}", cure)
    if end != (highest := max(vocab.values())):
        raise UserError(f"{path}: the end token has id {end}, but the highest id is {highest}", cure)
    whole = json.loads(text)
    if whole["model"].get("dropout"):  # a caption must always give the same ids
        raise UserError(f"{path} drops merges at random", "set model.dropout to null in it")
    # Special tokens in captions are text; __call__ adds start and end.
    added = [token for token in whole.get("added_tokens", ()) if not token["special"]]
    definition = {"added_tokens": added, **{key: whole.get(key) for key in ("normalizer", "pre_tokenizer", "model")}}
    if _is_clip(whole.get("pre_tokenizer")):
        # Our clean-up replaces its normaliser, which would also apply NFC to decoded entities.
        definition |= {"normalizer": None, "pre_tokenizer": _make_pre_tokenizer(EXACT_PATTERN)}
    tokenizer = Tokenizer(json.dumps(definition), start, end, context)
    try:
        tokenizer(["a", "1", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{CAT FACE}", "\u732b"])
    except Exception as e:  # some models lack the token for unknown words that they need
        raise UserError(f"{path} cannot encode every text: {e}", cure) from e
    return tokenizer


def _parse(path: str, text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as e:  # the library raises plain Exception, and panics on some damage
        if not isinstance(e, Exception) and type(e).__name__ != PANIC:
            raise
        raise UserError(f"{path} is not a tokenizer: {' '.join(str(e).split())}", "get or write the file again") from e


def _is_clip(pre_tokenizer: dict[str, Any] | None) -> bool:
    first = ((pre_tokenizer or {}).get("pretokenizers") or [{}])[0]
    return first.get("pattern", {}).get("Regex", "").endswith(PATTERN)

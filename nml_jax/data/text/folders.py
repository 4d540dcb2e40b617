"""Read the tokenizer of a published text encoder from its folder, and turn texts and pairs of texts into ids.

A folder holds tokenizer.json, or vocab.txt (BERT's word pieces), or vocab.json and merges.txt (the byte-level BPE of
GPT-2 and RoBERTa); tokenizer_config.json says how to clean texts, and which tokens are special.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from nml_jax.data.text.tokenizer import PANIC
from nml_jax.errors import MissingInput, UserError
from nml_jax.hashes import hash_text

CHUNK = 1024  # texts that the library gets at a time
# Special tokens by family, where no file names them: role -> token.
BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
           "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}


class TokenTable(NamedTuple):
    """The tokens of N texts, one after another.

    Fields:
        ids: int32 [sum of lengths].
        starts: int64 [N + 1]; text i is ids[starts[i]:starts[i + 1]].
        seconds: int32 [N]; where in its tokens the second text of a pair begins to have type 1; its length if nowhere.
        cut: number of texts that were cut to the length.
        special: number of texts in which a special token was found as text, and taken for one.
    """

    ids: np.ndarray
    starts: np.ndarray
    seconds: np.ndarray
    cut: int
    special: int

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def take(self, rows: np.ndarray) -> "TokenTable":
        """Return the table of some of the texts, in the order of `rows`. The counts stay those of the whole."""
        lengths = self.lengths[rows]
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        places = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], lengths)
        return self._replace(ids=self.ids[places], starts=starts, seconds=self.seconds[rows])

    def make_batch(self, rows: np.ndarray, size: int, width: int) -> dict[str, np.ndarray]:
        """Return the texts `rows` as inputs of a text encoder; rows up to `size` are empty, and ids are padded by 0."""
        tokens, length, second = np.zeros((size, width), np.int32), np.zeros(size, np.int32), np.zeros(size, np.int32)
        length[: len(rows)], second[: len(rows)] = self.lengths[rows], self.seconds[rows]
        for place, row in enumerate(rows):
            tokens[place, : length[place]] = self.ids[self.starts[row] : self.starts[row + 1]]
        second[second >= length] = width
        return {"tokens": tokens, "length": length, "second": second}


def join_tables(tables: Sequence[TokenTable]) -> TokenTable:
    """Return the tokens of all tables, one after another."""
    ids, seconds = (np.concatenate([getattr(table, name) for table in tables]) for name in ("ids", "seconds"))
    lengths = np.concatenate([table.lengths for table in tables])
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return TokenTable(ids, starts, seconds, sum(t.cut for t in tables), sum(t.special for t in tables))


class TextTokenizer:
    """The tokenizer of a folder, for texts of at most `length` tokens.

    Args:
        folder: the folder, or a tokenizer.json of any name.
        length: most tokens of a text or pair, with special tokens; others are cut, of a pair the longer text first.
        literal: special tokens in texts are plain text; else they are special there, too, as in transformers.
        separator: a token to put between the texts of a pair where the tokenizer puts none, as GPT-2's; "": none.

    Attributes:
        size: one more than the highest id.
        fingerprint: SHA-256 of all that the ids depend on.
        definition: JSON of the tokenizers library, without truncation and padding.
        special: the special tokens.
        settings: length, literal and separator.

    Raises:
        UserError: files are missing or damaged, or the separator is not a token.
    """

    def __init__(self, folder: Path, length: int, *, literal: bool = False, separator: str = ""):
        self.folder, self.length = folder, length
        own = _load(folder)
        own.no_padding()  # the file may pad and cut all texts to a length of its own
        own.no_truncation()
        added = own.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self.special = tuple(token.content for token in added.values() if token.special)
        if separator and separator not in own.get_vocab():
            raise UserError(
                f"texts.separator is {separator!r}, which is not a token of {folder}",
                f"give one, such as {', '.join(self.special[:3]) or 'none'}",
            )
        own_specials = own.num_special_tokens_to_add(True)
        self._separator = own.token_to_id(separator) if separator and not own_specials else None
        room = length - (self._separator is not None)
        if room - own_specials < 2:
            raise UserError(f"texts.length is {length}, which leaves no room for a pair", "give more tokens")
        self.definition: dict[str, Any] = json.loads(own.to_str())
        # Set once: a change while other threads encode is an error of the library.
        own.enable_truncation(room, strategy="longest_first")
        own.encode_special_tokens = literal
        self.size = max(own.get_vocab(with_added_tokens=True).values()) + 1
        self._own = own
        self.fingerprint = hash_text(json.dumps([own.to_str(), length, literal, separator]))
        self.settings = {"length": length, "literal": literal, "separator": separator}

    def describe(self) -> dict[str, Any]:
        """Describe what ids depend on by JSON values: tokenizer (SHA-256), length, literal and separator."""
        return {"tokenizer": self._digest, **self.settings}

    @functools.cached_property
    def _digest(self) -> str:
        return hash_text(json.dumps(self.definition, sort_keys=True))

    def __call__(self, texts: Sequence[tuple[str, ...]]) -> TokenTable:
        """Encode texts, each a tuple of one text or of two.

        Raises:
            UserError: a text has no token at all, as GPT-2's of an empty text; its row is named.
        """
        ids, lengths, seconds, cut, special = [], [], [], 0, 0
        for first in range(0, len(texts), CHUNK):
            part = texts[first : first + CHUNK]
            found = self._encode(part)
            for place, (tokens, types, was_cut) in enumerate(found):
                if not tokens:
                    row = f"row {first + place} ({part[place][0][:20]!r})"
                    raise UserError(
                        f"{row} has no tokens with the tokenizer of {self.folder}",
                        "leave empty texts out of the data",
                    )
                ids.append(np.asarray(tokens, np.int32))
                lengths.append(len(tokens))
                seconds.append(types.index(1) if 1 in types else len(tokens))
                cut += was_cut
            if not self._own.encode_special_tokens:
                special += sum(any(word in text for text in own for word in self.special) for own in part)
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        joined = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        return TokenTable(joined, starts, np.array(seconds, np.int32), cut, special)

    def _encode(self, texts: Sequence[tuple[str, ...]]) -> list[tuple[list[int], list[int], bool]]:
        """Return ids, types and whether it was cut, of each text."""
        out = []
        for done in self._own.encode_batch([text[0] if len(text) == 1 else text for text in texts]):
            ids, types = done.ids, done.type_ids
            if self._separator is not None and done.n_sequences == 2:
                place = sum(number == 0 for number in done.sequence_ids)
                ids, types = [*ids[:place], self._separator, *ids[place:]], []
            out.append((ids, types, bool(done.overflowing)))
        return out


def check_size(tokenizer: TextTokenizer, vocab: int) -> None:
    """Raise UserError if the tokenizer has ids that the model's embedding lacks.

    Embeddings may have more rows than there are tokens.
    """
    if tokenizer.size > vocab:
        raise UserError(
            f"the tokenizer of {tokenizer.folder} has ids up to {tokenizer.size - 1}, the model {vocab} embeddings",
            "give the tokenizer that the weights were trained with",
        )


def _load(folder: Path) -> tokenizers.Tokenizer:
    """Load the tokenizer of a folder.

    Raises:
        UserError: see `TextTokenizer`.
    """
    if folder.is_file():
        return _read_tokenizer(folder)
    if not folder.is_dir():
        raise MissingInput(f"{folder} is no folder with a tokenizer", "give the folder of a published text encoder")
    about = {
        name: _read_json(folder / f"{name}.json")
        for name in ("tokenizer_config", "special_tokens_map", "config")
        if (folder / f"{name}.json").is_file()
    }
    given = about.get("special_tokens_map", {}) | about.get("tokenizer_config", {})
    path = folder / "tokenizer.json"
    if path.is_file():
        return _read_tokenizer(path)
    try:
        if (folder / "vocab.txt").is_file():
            return _make_word_pieces(folder / "vocab.txt", given)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            path = folder / "vocab.json"
            return _make_bytes(folder, given, about.get("config", {}).get("model_type", ""))
    except BaseException as e:
        raise _describe_damage(path, e) from e
    raise MissingInput(
        f"{folder} holds no tokenizer.json, vocab.txt, or vocab.json with merges.txt", "download the whole folder"
    )


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Read a tokenizer.json."""
    try:
        text = path.read_text("utf-8")
        if json.loads(text)["model"].get("dropout"):
            raise UserError(f"{path} drops merges at random", "set model.dropout to null in it")
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as e:
        raise _describe_damage(path, e) from e


def _describe_damage(path: Path, e: BaseException) -> BaseException:
    """Return the error to raise for one of the library, which raises plain Exception, and panics on some damage."""
    if isinstance(e, UserError) or not (isinstance(e, Exception) or type(e).__name__ == PANIC):
        return e
    return UserError(f"{path} is not a tokenizer: {' '.join(str(e).split())}", "get the file again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path}: {e}", "download it again") from e
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping", "download it again")
    return content


def _find_special(given: dict[str, Any], defaults: dict[str, str]) -> dict[str, str]:
    """Return the special tokens by role: as the folder says, or the family's."""
    own = {role: given.get(role) or token for role, token in defaults.items()}
    return {role: token["content"] if isinstance(token, dict) else token for role, token in own.items()}


def _make_word_pieces(path: Path, given: dict[str, Any]) -> tokenizers.Tokenizer:
    """Make BERT's tokenizer from its vocabulary: a token per line, whose number is its id."""
    lines = path.read_text("utf-8").split("\n")
    lines = [line.removesuffix("\r") for line in lines[: -1 if not lines[-1] else None]]
    vocab: dict[str, int] = {}
    for number, token in enumerate(lines):
        if token in vocab:
            raise UserError(
                f"{path} holds {token!r} twice, in lines {vocab[token] + 1} and {number + 1}", "download it again"
            )
        vocab[token] = number
    special = _find_special(given, BERT)
    if missing := [token for token in special.values() if token not in vocab]:
        raise UserError(f"{path} lacks the special token {missing[0]!r}", "give the vocabulary of a BERT")
    own = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=special["unk_token"]))
    own.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=given.get("tokenize_chinese_chars", True),
        strip_accents=given.get("strip_accents"),
        lowercase=given.get("do_lower_case", True),
    )
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own.decoder = decoders.WordPiece()
    own.add_special_tokens(list(special.values()))
    cls, sep = special["cls_token"], special["sep_token"]
    own.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    return own


def _make_bytes(folder: Path, given: dict[str, Any], kind: str) -> tokenizers.Tokenizer:
    """Make the byte-level BPE of RoBERTa, or of GPT-2."""
    own = tokenizers.Tokenizer(
        models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"), continuing_subword_prefix="",
                             end_of_word_suffix="", fuse_unk=False)
    )  # fmt: skip
    space = bool(given.get("add_prefix_space", False))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    own.decoder = decoders.ByteLevel()
    roberta = kind == "roberta" or "Roberta" in str(given.get("tokenizer_class", ""))
    special = _find_special(given, ROBERTA if roberta else GPT2)
    if missing := [token for token in special.values() if own.token_to_id(token) is None]:
        raise UserError(f"{folder / 'vocab.json'} lacks the special token {missing[0]!r}", "download it again")
    for role, token in special.items():
        stored = given.get(role)
        about: Mapping[str, Any] = stored if isinstance(stored, dict) else {}
        strip = {side: bool(about.get(side, False)) for side in ("lstrip", "rstrip")}  # blanks beside it are its own
        own.add_special_tokens([AddedToken(token, special=True, normalized=False, **strip)])
    if roberta:
        (sep, cls) = ((special[role], own.get_vocab()[special[role]]) for role in ("sep_token", "cls_token"))
        own.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=space)
    else:
        own.post_processor = processors.ByteLevel(trim_offsets=False)
    return own

"""Write a tokenizer, of captions or of texts, as the files that transformers opens, and so open_clip."""

import json
from typing import Any

from nml_jax.data.text.folders import BERT, GPT2, ROBERTA, TextTokenizer
from nml_jax.data.text.tokenizer import END, START, Tokenizer
from nml_jax.errors import UserError

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
# What transformers calls special tokens that are there.
ROLES = {token: role for of in (GPT2, ROBERTA, BERT) for role, token in of.items()} | {
    START: "cls_token", END: "sep_token"
}  # fmt: skip
CLEAN = {"clean": "lower"}  # open_clip's name for our clean-up, an argument of its tokenizer


def make_files(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return the content of FILE and CONFIG.

    Both put the start and end token around the tokens and cut as ours does. Padding is the end token in place of 0: a
    causal text tower whose output is that of the first end token never sees it.
    """
    own = json.loads(tokenizer.definition)
    start, end = (
        {"id": i, "content": tokenizer.find_token(i) or name, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for name, i in ((START, tokenizer.start), (END, tokenizer.end))
    )
    before, after = ({"SpecialToken": {"id": token["content"], "type_id": 0}} for token in (start, end))
    text, second = ({"Sequence": {"id": of, "type_id": 0}} for of in "AB")
    whole = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [*own.get("added_tokens", ()), start, end],
        "normalizer": own.get("normalizer"), "pre_tokenizer": own["pre_tokenizer"],
        "post_processor": {
            "type": "TemplateProcessing", "single": [before, text, after], "pair": [before, text, second, after],
            "special_tokens": {
                token["content"]: {"id": token["content"], "ids": [token["id"]], "tokens": [token["content"]]}
                for token in (start, end)
            },
        },
        "decoder": None, "model": own["model"],
    }  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": start["content"], "eos_token": end["content"],
        "pad_token": end["content"], "model_max_length": tokenizer.context, "padding_side": "right",
        "truncation_side": "right", "clean_up_tokenization_spaces": False,
        "split_special_tokens": not tokenizer.reads_special,
    }  # fmt: skip
    return {FILE: whole, CONFIG: config}


def make_text_files(tokenizer: TextTokenizer, *, typed: bool) -> dict[str, dict[str, Any]]:
    """Return the content of FILE and CONFIG, which give the ids and types of texts and pairs that ours does.

    Args:
        typed: whether the model has two types of tokens.

    Raises:
        UserError: a separator stands between the texts of a pair, which the files cannot say.
    """
    if separator := tokenizer.settings["separator"]:
        raise UserError(
            f"texts.separator={separator!r} is not a part of a tokenizer's files",
            "export it with --format=nml, which this package alone reads",
        )
    roles = {ROLES[word]: word for word in tokenizer.special if word in ROLES}
    usual = next((roles[role] for role in ("sep_token", "eos_token") if role in roles), None)
    padding = {"pad_token": roles.get("pad_token", usual)} if usual else {}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokenizer.length, **roles, **padding,
        "padding_side": "right", "truncation_side": "right", "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"],
        "split_special_tokens": tokenizer.settings["literal"],
    }  # fmt: skip
    return {FILE: tokenizer.definition, CONFIG: about}

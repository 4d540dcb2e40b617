"""Take the features of BERT, RoBERTa or GPT-2, and find the best head for them, on texts of your own.

    python -m nml_jax.main --config=configs/text.py:weights/bert --config.texts.train=train.tsv

The part after the colon is a folder as it is downloaded from Hugging Face: config.json, safetensors and the tokenizer.
It says which sizes, activation and epsilon the model has, and, with sentence-transformers' 1_Pooling, how a text's
tokens become one vector; `--config.model.pool` sets it.

The tables are .tsv (as GLUE writes it: no quotes), .csv or .parquet with named columns: one of texts, or two for pairs,
and one of labels. `--config.texts.test` and `--config.texts.ood` name tests; without them, a part of the training file
is held out. A linear probe (by L-BFGS), an MLP and NMTune (both presets) are trained on the features of the training
file with five seeds, and scored on the tests.
"""

from ml_collections import ConfigDict

from configs.published import make_config


def get_config(folder: str = "") -> ConfigDict:
    config = make_config(folder, "text")
    config.downstream.tasks = ("texts",)
    config.extract.batch = 64
    return config.lock()

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

from pathlib import Path

from ml_collections import ConfigDict

from configs import common
from nml_jax.models.published import read_keys


def get_config(folder: str = "") -> ConfigDict:
    config = common.get_config()
    config.name = "text"
    config.stages = ("extract", "tune", "report")
    config.sweep.noise = ()
    config.sweep.seed = (0, 1, 2, 3, 4)
    if folder:  # without one, --config.init_from and the keys of its model must follow
        path = Path(folder).expanduser()
        config.name = f"text_{path.resolve().name}"
        config.init_from = str(path)
        config.update_from_flattened_dict(read_keys(path))

    config.downstream.tasks = ("texts",)
    config.extract.batch = 64

    config.tune.methods = ("lbfgs", "mlp", "nmtune")
    config.tune.standardize = True
    config.tune.start = "probe"
    config.tune.batch = 128
    config.tune.epochs = 60
    config.tune.steps = 1000
    config.tune.patience = 6
    config.tune.halving = True
    config.tune.width = 0
    config.tune.lrs = (0.003, 0.001, 0.0003)
    config.tune.weight_decays = (1e-4,)
    config.tune.cs = (3e-3, 0.03, 0.3)
    return config.lock()

"""Compare heads on the features of BERT, RoBERTa or GPT-2 on GLUE, in- and out-of-domain.

    python -m nml_jax.main --config=configs/glue.py:weights/bert --config.glue.folder=data/glue --dry_run
    python -m nml_jax.main --config=configs/glue.py:weights/bert --config.glue.folder=data/glue

The part after the colon is a folder as it is downloaded from Hugging Face, as for configs/text.py. The other folder
holds a folder for each set of texts, such as RTE with train.tsv and dev.tsv: GLUE's own files, Hugging Face's parquet,
what TFDS has prepared, or any .tsv, .csv, .jsonl or .parquet with the usual names of columns. Every task of GLUE whose
train and dev are there is run, and tested on every out-of-domain partner that is there, such as IMDB for SST-2.
`--dry_run` lists what was found. `--config.downstream.tasks="('rte','cola')"` runs these alone.

Five heads (linear probe, ridge, MLP, and NMTune with both presets) have three seeds each. Each task has its own metric:
it chooses the settings on a part of train, and dev is scored once. The report has the mean over tasks.
"""

from ml_collections import ConfigDict

from configs.published import make_config


def get_config(folder: str = "") -> ConfigDict:
    config = make_config(folder, "glue")
    config.downstream.tasks = ("glue",)
    config.sweep.seed = (0, 1, 2)
    config.extract.batch = 64
    config.tune.methods = ("lbfgs", "ridge", "mlp", "nmtune")
    config.tune.alphas = (10.0, 100.0, 1000.0)
    return config.lock()

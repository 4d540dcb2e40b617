"""Pre-train a small text encoder on phrases with wrong labels, and probe it frozen on other texts.

    python -m nml_jax.tokenizer train glue/SST-2/train.tsv sst2.json --vocab 4096
    python -m nml_jax.main --config=configs/text_noise.py --config.data.path=glue/SST-2 \
        --config.texts.tokenizer=sst2.json --config.glue.folder=glue \
        --config.texts.train=TREC.train.all --config.texts.test=TREC.test.all

The papers' own form, with texts: a classifier learns the sentiment of SST-2's 67,349 phrases, of which exactly 0, 10 or
30 % have the other label, with three seeds. It is a BERT of two blocks and 64 channels that starts at random, in
366,594 parameters. The mean over its tokens is frozen, and a linear probe, an MLP and NMTune (both presets) are trained
on it: for the sentiment of SST-2 (what it was trained for) and for whether a sentence is acceptable (CoLA, in- and
out-of-domain), on 2,000 rows each, and for the six kinds of questions of TREC. `data.path` is a folder with train.tsv
and dev.tsv, columns sentence and label. Two CPU cores take some minutes; docs/results.md has the result.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.name = "text_noise"
    config.sweep.noise = (0.0, 0.1, 0.3)
    config.sweep.seed = (0, 1, 2)

    config.data.source = "texts"
    config.data.validation_split = "dev"
    config.model.name = "bert"
    config.model.pool = "mean"
    config.model.dim, config.model.depth, config.model.heads, config.model.hidden = 64, 2, 4, 256
    config.model.vocab, config.model.context = 4096, 64
    config.model.dropout = 0.1
    config.optimizer.lr = 2e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_epochs = 0.05
    config.train.batch, config.train.epochs = 128, 0.5
    config.texts.length, config.texts.buckets = 64, (16, 24, 32, 48, 64)

    config.downstream.tasks = ("sst2", "cola", "texts")
    config.glue.train_rows = 2000
    config.extract.batch = 128
    config.tune.methods = ("lbfgs", "mlp", "nmtune")
    config.tune.cs = (0.01, 0.1, 1.0, 10.0)
    config.tune.standardize = True
    config.tune.epochs = 10
    config.tune.lrs = (0.001,)
    config.tune.weight_decays = (1e-4,)
    return config

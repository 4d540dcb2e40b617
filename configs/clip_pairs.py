"""CLIP on any folder of image-text pairs: a small model at 32 pixels, which a CPU trains in minutes.

    python -m nml_jax.prepare image_text SRC prepared/mine      # tars, Parquet or CSV with images and captions
    python -m nml_jax.main --config=configs/clip_pairs.py --config.data.path=prepared/mine

It pre-trains on the split `train` with 0, 10 and 30 % of the captions swapped, three seeds each, and reports recall in
both directions on the validation part. Captions are read as bytes, which needs no file. A vocabulary trained on the
captions makes them shorter and training several times as fast:

    python -m nml_jax.tokenizer train prepared/mine mine.json --vocab 2048
    ... --config.data.tokenizer=mine.json --config.model.text_vocab=2048 --config.model.text_context=32

If the images have labels, too (--label when building), or with another labelled dataset, add the further stages:

    --config.downstream.path=prepared/other --config.downstream.train=train --config.downstream.test="('test',)"
    --config.stages="('pretrain','extract','zeroshot','tune','report')"
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.name = "clip_pairs"
    config.stages = ("pretrain", "report")
    config.sweep.noise = (0.0, 0.1, 0.3)
    config.sweep.seed = (0, 1, 2)
    config.noise_kind = "caption_swap"

    config.data.source = "directory"
    config.data.image_size = 32

    config.augment.crop = "pad"
    config.augment.pad = 2
    config.augment.flip = 0.0
    config.augment.interpolation = "bilinear"

    config.model.name = "clip"
    config.model.tower = "resnet18"
    config.model.width = 48
    config.model.blocks = (1, 1, 1)
    config.model.embed_dim = 128
    config.model.text_context = 64
    config.model.text_vocab = 258  # bytes, start and end
    config.model.text_width = 64
    config.model.text_depth = 2
    config.model.text_heads = 2

    config.objective.name = "clip"

    config.optimizer.lr = 1e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.decay = ((r"(.*/)?(bias|scale|cls|logit_scale|logit_bias)", 0.0), (r".*", 1.0))

    config.train.batch = 128
    config.train.epochs = 10.0

    config.runtime.evaluators = ("spectrum",)
    config.runtime.eval_every = 5.0
    config.runtime.save_every = 10.0

    config.downstream.tasks = ("directory",)
    config.tune.standardize = True
    return config.lock()

"""CLIP with the modified ResNet-50, pre-trained on noisy YFCC15M: the papers' CLIP setting (arXiv 2309.17002).

    python -m nml_jax.main --config=configs/clip_r50.py --config.noise=0.05

Published zero-shot ImageNet top-1 at 0/5/10/20/30 % swapped captions: 32.64 / 30.86 / 29.54 / 27.72 / 26.53. Not run
here.

The recipe is open_clip's: AdamW (0.9, 0.999, 1e-8), lr 5e-4, weight decay 0.2, 32 epochs, cosine after 10,000 warm-up
steps, crops of 90 to 100 % of the area, no flip, embedding 1024, captions of 77 tokens. The papers do not state the
batch. 1024 is that of open_clip's example command (128 on each of 8 devices), with BatchNorm statistics per device,
model.bn_group = 128 (unconfirmed). Its published YFCC15M weights use the quick GELU, so model.quick_gelu = True.

Data and tokenizer are those of configs/clip_vitb16.py, but only YFCC15M:

    python -m nml_jax.prepare image_text yfcc15m prepared/yfcc15m
"""

from ml_collections import ConfigDict

from configs import clip_vitb16


def get_config() -> ConfigDict:
    config = clip_vitb16.get_config()
    with config.unlocked():
        config.name = "clip_r50"

        config.data.path = "prepared/yfcc15m"
        config.data.mixture = ()
        config.data.expected = 15_388_848

        config.model.name = "clip_rn50"
        config.model.bn_group = 128
        config.model.quick_gelu = True

        config.optimizer.weight_decay = 0.2
        config.optimizer.b2 = 0.999
        config.optimizer.eps = 1e-8
        config.optimizer.warmup_steps = 10_000

        config.train.batch = 1024
        config.objective.chunk = 0
    return config

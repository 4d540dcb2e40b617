"""Pre-train with label noise and transfer on any image folder: a small ResNet at 32 pixels, for a CPU or accelerator.

    python -m nml_jax.prepare image_folder SRC prepared/mine        # SRC/<split>/<class>/*.jpg
    python -m nml_jax.main --config=configs/image_folder.py --config.data.path=prepared/mine
    python -m nml_jax.main --config=configs/image_folder.py:vit --config.data.path=prepared/mine

The small ResNet exists here alone. The small ViT, 64 patches of 4 pixels, can leave: python -m nml_jax.export writes it
as a folder that timm and transformers open.

It pre-trains on the split `train` with 0, 10 and 30 % wrong labels. Heads are then trained on the clean labels of the
same split and scored on `test` (in-domain) and on shifted test images (out-of-domain). For other splits or another
downstream dataset:

    --config.downstream.path=prepared/other --config.downstream.test="('val',)" --config.downstream.ood="('sketch',)"
"""

from ml_collections import ConfigDict

from configs import common
from nml_jax.errors import UserError

MODELS = {
    "resnet": {"name": "resnet18", "stem": "small", "width": 16, "blocks": (1, 1, 1)},
    "vit": {"name": "vit_ti", "patch": 4, "dim": 96, "depth": 4, "heads": 3},
}


def get_config(kind: str = "resnet") -> ConfigDict:
    config = common.get_config()
    if kind not in MODELS:
        raise UserError(f"image_folder has no model {kind!r}", f"choose one of {', '.join(MODELS)}, as in :vit")
    config.name = "image_folder" if kind == "resnet" else f"image_folder_{kind}"
    config.sweep.noise = (0.0, 0.1, 0.3)
    config.sweep.seed = (0, 1, 2)

    config.data.source = "directory"
    config.data.image_size = 32

    config.augment.crop = "pad"
    config.augment.interpolation = "bilinear"

    config.model.update(MODELS[kind])

    config.optimizer.lr = 2e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_epochs = 1.0

    config.train.batch = 64
    config.train.epochs = 20.0

    config.downstream.tasks = ("directory",)
    config.downstream.shifts = ("shifted", "gaussian_noise", "inverted", "rotated", "blurred")
    config.tune.standardize = True
    return config.lock()

"""ViT-B/16 on ImageNet-1K with label noise: DeiT-B's recipe without distillation (arXiv 2012.12877).

    python -m nml_jax.main --config=configs/vitb16_in1k.py                # five runs, noise 0 to 30 %
    python -m nml_jax.main --config=configs/vitb16_in1k.py --config.noise=0.1

It needs `imagenet2012`, prepared by TFDS as ArrayRecord (--config.data.path is its data_dir).

Expected top-1 on the validation split without noise: 81.8 % (DeiT-B). arXiv 2403.06869 pre-trains a ViT-B/16 with noise
and names only "heavy regularisation". That it uses this recipe is unconfirmed.

Not run here. For one run the paper gives 53 h on one node of eight V100, or 37 h on two.

The values come from table 9 of arXiv 2012.12877. Values that it does not give come from the released code
(facebookresearch/deit): AdamW's β and ε, no clipping, warm-up from 1e-6, cosine to 1e-5, no decay on vectors, the class
token and the position embedding, RandAugment of two operations, bicubic resizing, centre crop 224 of 256. The learning
rate is 1e-3 at a batch of 1024; scale it yourself for another batch. The code keeps an average of the weights, but the
published accuracy is that of the raw ones, so none is kept here.

It differs from timm in two points. Mixup or cutmix is drawn once for the global batch; timm draws for each device. The
cosine begins when the warm-up ends (see `optim.make_schedule`).

Only the stage `pretrain` runs, because the downstream datasets are yours to choose. For those of the catalogue
(nml_jax/tasks/catalogue.py), add --config.stages='("pretrain","extract","tune","report")',
--config.downstream.tasks='("cifar10","dtd")' and --config.downstream.catalogue=DIR. For a prepared dataset of your own,
use --config.downstream.tasks='("directory",)' --config.downstream.path=DIR.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.name = "vitb16_in1k"
    config.stages = ("pretrain",)
    config.sweep.noise = (0.0, 0.05, 0.1, 0.2, 0.3)

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.validation_split = "validation"
    config.data.num_classes = 1000
    config.data.size = 1_281_167
    config.data.image_size = 224

    config.augment.randaugment = 2
    config.augment.randaugment_magnitude = 9.0
    config.augment.erase = 0.25
    config.augment.repeats = 3

    config.model.name = "vit_b"
    config.model.patch = 16
    config.model.dtype = "bfloat16"
    config.model.drop_path = 0.1

    config.objective.label_smoothing = 0.1
    config.objective.mixup = 0.8
    config.objective.cutmix = 1.0

    config.optimizer.lr = 1e-3
    config.optimizer.warmup_lr = 1e-6
    config.optimizer.min_lr = 1e-5
    config.optimizer.weight_decay = 0.05

    config.train.batch = 1024
    config.train.epochs = 300.0
    return config.lock()

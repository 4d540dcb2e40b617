"""ResNet-50 on ImageNet-1K with label noise: procedure A2 of "ResNet strikes back" (arXiv 2110.00476), or :a1, :a3.

    python -m nml_jax.main --config=configs/resnet50_in1k.py              # five runs, noise 0 to 30 %
    python -m nml_jax.main --config=configs/resnet50_in1k.py:a3 --config.noise=0.1

It needs `imagenet2012`, prepared by TFDS as ArrayRecord (--config.data.path is its data_dir).

Expected top-1 on the validation split, %:

    noise                         0      5 %    10 %   20 %   30 %
    arXiv 2309.17002              79.96  79.18  78.61  76.27  73.11
    arXiv 2110.00476, A2          79.8      (A1: 80.4, A3: 78.1)

The first paper names this recipe but not the variant. A2 fits its accuracy; that is unconfirmed.

Not run here. For one run the second paper gives 110 h (A1) and 55 h (A2) on four V100 of 32 GB, and 15 h (A3) on four
of 16 GB.

The values come from table 2 of arXiv 2110.00476. Values that it does not give come from timm, its reference
implementation: LAMB's β, ε and clipping by global norm 1 (the default of timm's `Lamb`, although the table has no
clipping), no decay on vectors, zero-initialised residual branches, RandAugment of two operations with probability 0.5
each. The learning rates at the start of the warm-up, 1e-4, and at the end of the cosine, 1e-6, come from commands that
others published, unconfirmed. The paper's BatchNorm statistics are per device: 2048 images on four make groups of 512.

It differs from timm in four points:
  - Mixup or cutmix is drawn once for the global batch; timm draws for each device.
  - The repeats of an image are neighbours and so in one BatchNorm group; timm puts them on different devices.
  - Every class with a share in a mixed image is a target of 1, as in the paper; timm's commands need a share above 0.2.
  - The cosine begins when the warm-up ends (see `optim.make_schedule`).

Only the stage `pretrain` runs, because the downstream datasets are yours to choose. For those of the catalogue
(nml_jax/tasks/catalogue.py), add --config.stages='("pretrain","extract","tune","report")',
--config.downstream.tasks='("cifar10","dtd")' and --config.downstream.catalogue=DIR. For a prepared dataset of your own,
use --config.downstream.tasks='("directory",)' --config.downstream.path=DIR.
"""

from ml_collections import ConfigDict

from configs import common
from nml_jax.errors import UserError

PROCEDURES = ("a1", "a2", "a3")


def get_config(arg: str = "a2") -> ConfigDict:
    """Return the config of the procedure `arg`.

    Raises:
        UserError: there is no such procedure.
    """
    if arg not in PROCEDURES:
        raise UserError(f"resnet50_in1k has no procedure {arg!r}", f"choose one of {', '.join(PROCEDURES)}, as in :a2")
    config = common.get_config()
    config.name = f"resnet50_in1k_{arg}"
    config.stages = ("pretrain",)
    config.sweep.noise = (0.0, 0.05, 0.1, 0.2, 0.3)

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.validation_split = "validation"
    config.data.num_classes = 1000
    config.data.size = 1_281_167
    config.data.image_size = 224

    config.augment.randaugment = 2
    config.augment.randaugment_magnitude = 7.0
    config.augment.repeats = 3
    config.augment.test_size = 224
    config.augment.test_crop = 0.95

    config.model.name = "resnet50"
    config.model.dtype = "bfloat16"
    config.model.drop_path = 0.05
    config.model.bn_group = 512

    config.objective.loss = "bce"
    config.objective.multi_hot = True
    config.objective.mixup = 0.1
    config.objective.cutmix = 1.0

    config.optimizer.name = "lamb"
    config.optimizer.lr = 5e-3
    config.optimizer.warmup_lr = 1e-4
    config.optimizer.min_lr = 1e-6
    config.optimizer.weight_decay = 0.02
    config.optimizer.eps = 1e-6
    config.optimizer.clip_norm = 1.0

    config.train.batch = 2048
    config.train.epochs = 300.0

    if arg == "a1":
        config.train.epochs = 600.0
        config.optimizer.weight_decay = 0.01
        config.objective.mixup = 0.2
        config.objective.label_smoothing = 0.1
    if arg == "a3":
        config.train.epochs = 100.0
        config.data.image_size = 160
        config.optimizer.lr = 8e-3
        config.augment.randaugment_magnitude = 6.0
        config.augment.repeats = 1
        config.model.drop_path = 0.0
    return config.lock()

"""The data that studies run on, as base configs. All studies of one twin share its folder, runs/studies_TWIN.

digits    scikit-learn's digits, embedded, as in configs/digits.py: digits 0 to 4 to pre-train on, 5 to 9 and three
          shifts of them downstream. Ten seeds.
cifar     a small ResNet at 32 pixels on the 10,000 images of a prepared folder, prepared/cifar10, with the splits
          train, test and jpeg (the test images, compressed heavily). Downstream are these (ID, and jpeg as OOD), the
          flowers of prepared/flowers5, PACS' photos (ID) and art_painting (OOD) of prepared/pacs, and the digits.
tiny      the same, with 20 classes of Tiny ImageNet in prepared/tinyimagenet32 to pre-train on.
folder    a prepared folder of images (python -m nml_jax.prepare image_folder), at 32 pixels, as --config.data.path=DIR.
          Another domain is --config.downstream.ood="('SPLIT',)"; five shifts are there without it.
emoji     a prepared folder of image-text pairs with labels (python -m nml_jax.prepare image_text), likewise.
imagenet  ResNet-50 on ImageNet-1K, procedure A2, with the catalogue's fourteen sets and DomainNet: accelerators only.

The keys below are the same in all studies of a twin; a study sets its axes, methods and lists alone.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import clip_pairs, digits, image_folder, resnet50_in1k
from nml_jax.errors import UserError
from nml_jax.tasks import catalogue

STAGES = ("pretrain", "extract", "tune", "report")


def make_twin(name: str, study: str) -> ConfigDict:
    """Return the unlocked config of a twin for a study.

    Raises:
        UserError: there is no such twin.
    """
    if name not in TWINS:
        raise UserError(f"configs/studies/{study}.py:{name} is unknown", f"give one of {', '.join(TWINS)}")
    config = TWINS[name]()
    config.unlock()
    config.name = f"studies_{name}"
    config.study = study
    config.stages = STAGES
    config.tune.methods = ("lbfgs", "nmtune")
    config.tune.presets = ("paper",)
    config.finetune.terms = ("none",)
    config.finetune.targets = ("resnet_conv",)
    config.finetune.wise = ()
    return config


def tune_encoders(config: ConfigDict) -> None:
    """Set a study to fine-tune encoders, too."""
    config.stages = ("pretrain", "extract", "tune", "finetune", "report")


def _make_digits() -> ConfigDict:
    config = digits.get_config()
    with config.unlocked():
        config.sweep.noise = (0.0, 0.05, 0.1, 0.2, 0.3)
        config.sweep.seed = tuple(range(10))
        config.finetune.epochs = 10.0
        config.finetune.lrs = (1e-3, 1e-2)
        config.finetune.rank = 4
        config.finetune.alpha = 4.0
    return config


def _make_small(base: ConfigDict) -> ConfigDict:
    """Add to a config of your own data the papers' rates, and fine-tuning that two cores can do."""
    with base.unlocked():
        base.sweep.noise = (0.0, 0.05, 0.1, 0.2, 0.3)
        base.finetune.epochs = 5.0
    return base


def _make_photos(path: str, classes: tuple[int, ...] = ()) -> ConfigDict:
    """Make a twin that learns from a folder of small photos, and is tested on four sets."""
    config = _make_small(image_folder.get_config())
    with config.unlocked():
        config.data.path = path
        config.data.classes = classes
        config.train.epochs = 8.0
        config.downstream.shifts = ()
        config.downstream.tasks = ("cifar10_small", "flowers5", "pacs", "digits")
        config.downstream.directories = (
            ("cifar10_small", "prepared/cifar10", "train", ("test",), ("jpeg",)),
            ("flowers5", "prepared/flowers5", "train", ("test",), ()),
            ("pacs", "prepared/pacs", "photo[:70%]", ("photo[70%:]",), ("art_painting",)),
        )
    return config


def _make_imagenet() -> ConfigDict:
    config = resnet50_in1k.get_config("a2")
    with config.unlocked():
        config.sweep.seed = (0, 1, 2)
        config.downstream.tasks = (*catalogue.TRAINED, "domainnet")
        config.downstream.partners = tuple(catalogue.PARTNERS)
        config.tune.standardize = True
    return config


TWINS: dict[str, Callable[[], ConfigDict]] = {
    "digits": _make_digits,
    "cifar": lambda: _make_photos("prepared/cifar10"),
    "tiny": lambda: _make_photos("prepared/tinyimagenet32", tuple(range(0, 200, 10))),
    "folder": lambda: _make_small(image_folder.get_config()),
    "emoji": lambda: _make_small(clip_pairs.get_config()),
    "imagenet": _make_imagenet,
}

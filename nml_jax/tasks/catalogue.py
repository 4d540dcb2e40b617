"""The public datasets of the downstream tasks: folder, sizes, licence and source of each.

A dataset lies below `downstream.catalogue`, in the folder that TFDS gives it or that has the name of our builder. Sizes
are the published ones. Licences are as the distributor states them.
"""

import dataclasses

from nml_jax.tasks.glue_sets import GLUE_TASKS

# TFDS's names of the benchmark's corruptions (Hendrycks & Dietterich, arXiv 1903.12261). CORRUPTIONS adds its four
# extra ones.
BENCHMARK = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "frosted_glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic", "pixelate", "jpeg_compression",
)  # fmt: skip
CORRUPTIONS = (*BENCHMARK, "gaussian_blur", "saturate", "spatter", "speckle_noise")
SEVERITIES = (1, 2, 3, 4, 5)

NOT_STATED = "not stated"
RESEARCH = "non-commercial research"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A dataset.

    Attributes:
        folder: folder below the catalogue, without the folder of the version.
        version: TFDS's version that the sizes are from; "" for our own builders.
        builder: subcommand of nml_jax.prepare that makes it; "": TFDS makes it.
        num_classes: number of classes.
        train: split to train on, with `n_train` records; "": a test set only.
        full: split with the validation records, too, with `n_full` records; "": no validation records exist.
        test: split to test on, with `n_test` records. {} here and in `folder` stands for a corruption and its severity.
        metric: accuracy, or mean_per_class if that is customary.
        partners: names of the out-of-domain test sets for a head trained on this dataset.
        class_map: key of class_maps that maps its classes to the head's; "": the classes are the head's.
        subset: True if its labels are numbers of the head's classes, of which only those in the class map occur.
        frames: True if its records are frames of videos, scored by nml_jax/evals/mapped.py.
    """

    folder: str
    version: str = ""
    builder: str = ""
    num_classes: int
    train: str = "train"
    n_train: int = 0
    full: str = ""
    n_full: int = 0
    test: str = "test"
    n_test: int
    metric: str = "accuracy"
    partners: tuple[str, ...] = ()
    class_map: str = ""
    subset: bool = False
    frames: bool = False
    licence: str = NOT_STATED
    url: str
    note: str = ""

    @property
    def obtain(self) -> str:
        """Return the end of a sentence about how to get it: the source, a note, and the command that prepares it."""
        where = f"from {self.url}" + (f" ({self.note})" if self.note else "")
        if self.builder:
            return f"{where}: python -m nml_jax.prepare {self.builder} SRC CATALOGUE/{self.folder}"
        config = self.folder.replace("{}", "CORRUPTION_SEVERITY")
        return f"{where}: tfds build {config} --file_format=array_record --data_dir=CATALOGUE (nml_jax[prepare])"


# Datasets to train on: the papers' 14 in-domain sets, ImageNet-1K, and Country211.
TRAINED: dict[str, Entry] = {
    "cifar10": Entry(
        folder="cifar10", version="3.0.2", num_classes=10, n_train=50_000, n_test=10_000,
        partners=("cifar10_1", "cifar10_c"), url="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": Entry(
        folder="cifar100", version="3.0.2", num_classes=100, n_train=50_000, n_test=10_000,
        partners=("cifar100_c",), url="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "flowers102": Entry(
        folder="oxford_flowers102", version="2.1.1", num_classes=102, n_train=1_020, full="train+validation",
        n_full=2_040, n_test=6_149, metric="mean_per_class", url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    "food101": Entry(
        folder="food101", version="2.0.0", num_classes=101, n_train=75_750, test="validation", n_test=25_250,
        licence="images belong to Foodspotting; scientific fair use",
        url="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    ),
    "pets": Entry(
        folder="oxford_iiit_pet", version="4.0.0", num_classes=37, n_train=3_680, n_test=3_669,
        metric="mean_per_class", licence="CC BY-SA 4.0", url="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    "cars": Entry(
        folder="cars196", version="2.1.0", num_classes=196, n_train=8_144, n_test=8_041,
        url="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        note="gone from there; build another copy with image_folder",
    ),
    "aircraft": Entry(
        folder="fgvc_aircraft", builder="fgvc_aircraft", num_classes=100, n_train=3_334, full="train+validation",
        n_full=6_667, n_test=3_333, metric="mean_per_class", licence=RESEARCH,
        url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/", note="fgvc-aircraft-2013b.tar.gz",
    ),
    "svhn": Entry(
        folder="svhn_cropped", version="3.1.0", num_classes=10, n_train=73_257, n_test=26_032,
        licence="non-commercial use", url="http://ufldl.stanford.edu/housenumbers/",
    ),
    "dtd": Entry(
        folder="dtd", version="3.0.1", num_classes=47, n_train=1_880, full="train+validation", n_full=3_760,
        n_test=1_880, licence="research purposes", url="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        note="the first of ten splits",
    ),
    "caltech101": Entry(
        folder="caltech101", version="3.0.2", num_classes=102, n_train=3_060, n_test=6_084, metric="mean_per_class",
        licence="CC BY 4.0", url="https://doi.org/10.22002/D1.20086",
    ),
    "eurosat": Entry(
        folder="eurosat/rgb", version="2.0.0", num_classes=10, train="train[:80%]", n_train=21_600,
        test="train[80%:]", n_test=5_400, licence="MIT", url="https://github.com/phelber/eurosat",
    ),
    "patch_camelyon": Entry(
        folder="patch_camelyon", version="2.0.0", num_classes=2, n_train=262_144, n_test=32_768, licence="CC0 1.0",
        url="https://patchcamelyon.grand-challenge.org/",
    ),
    "resisc45": Entry(
        folder="resisc45", version="3.0.0", num_classes=45, train="train[:80%]", n_train=25_200, test="train[80%:]",
        n_test=6_300, url="http://www.escience.cn/people/JunweiHan/NWPU-RESISC45.html",
        note="download NWPU-RESISC45.rar by hand and unpack it into TFDS's manual_dir",
    ),
    "rendered_sst2": Entry(
        folder="rendered_sst2", builder="rendered_sst2", num_classes=2, n_train=6_920, full="train+validation",
        n_full=7_792, n_test=1_821, url="https://github.com/openai/CLIP/blob/main/data/rendered-sst2.md",
        note="rendered-sst2.tgz",
    ),
    "imagenet2012": Entry(
        folder="imagenet2012", version="5.1.0", num_classes=1000, n_train=1_281_167, test="validation", n_test=50_000,
        partners=(
            "imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch", "objectnet", "imagenet_vid_robust",
        ),
        licence=RESEARCH, url="https://image-net.org/",
        note="register, and put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into TFDS's manual_dir",
    ),
    "country211": Entry(
        folder="country211", builder="country211", num_classes=211, n_train=31_650, full="train+validation",
        n_full=42_200, n_test=21_100, licence="Creative Commons, of each photo in YFCC100M",
        url="https://github.com/openai/CLIP/blob/main/data/country211.md", note="country211.tgz",
    ),
}  # fmt: skip

# Datasets that only test the heads of other datasets.
PARTNERS: dict[str, Entry] = {
    "cifar10_1": Entry(
        folder="cifar10_1/v6", version="1.1.0", num_classes=10, train="", n_test=2_000, licence="MIT",
        url="https://github.com/modestyachts/CIFAR-10.1",
    ),
    "cifar10_c": Entry(
        folder="cifar10_corrupted/{}", version="1.0.0", num_classes=10, train="", n_test=10_000, licence="CC BY 4.0",
        url="https://zenodo.org/record/2535967",
    ),
    "cifar100_c": Entry(
        folder="cifar100_corrupted", builder="cifar100_corrupted", num_classes=100, train="", test="{}",
        n_test=10_000, licence="CC BY 4.0", url="https://zenodo.org/record/3555552", note="CIFAR-100-C.tar",
    ),
    "imagenet_v2": Entry(
        folder="imagenet_v2/matched-frequency", version="3.0.0", num_classes=1000, train="", n_test=10_000,
        licence="MIT", url="https://github.com/modestyachts/ImageNetV2",
    ),
    "imagenet_r": Entry(
        folder="imagenet_r", version="0.2.0", num_classes=1000, train="", n_test=30_000, class_map="imagenet_r",
        subset=True, url="https://github.com/hendrycks/imagenet-r",
    ),
    "imagenet_a": Entry(
        folder="imagenet_a", version="0.1.0", num_classes=1000, train="", n_test=7_500, class_map="imagenet_a",
        subset=True, licence="MIT", url="https://github.com/hendrycks/natural-adv-examples",
    ),
    "imagenet_sketch": Entry(
        folder="imagenet_sketch", version="1.0.0", num_classes=1000, train="", n_test=50_889, licence="MIT",
        url="https://github.com/HaohanWang/ImageNet-Sketch",
    ),
    "objectnet": Entry(
        folder="objectnet", builder="objectnet", num_classes=113, train="", n_test=18_574, class_map="objectnet",
        licence="CC BY 4.0; never to tune parameters on", url="https://objectnet.dev/",
        note="unpack objectnet-1.0.zip, which is encrypted",
    ),
    "imagenet_vid_robust": Entry(
        folder="imagenet_vid_robust", builder="imagenet_vid_robust", num_classes=30, train="", n_test=22_179,
        class_map="imagenet_vid_robust", frames=True, licence=NOT_STATED + "; frames of ImageNet-VID",
        url="https://modestyachts.github.io/natural-perturbations-website/", note="imagenet_vid_ytbb_robust.tar.gz",
    ),
}  # fmt: skip

# DomainNet: six datasets with the same classes. Number of (training, test) records of each, in the cleaned version.
DOMAINS = {
    "clipart": (33_525, 14_604),
    "infograph": (36_023, 15_582),
    "painting": (50_416, 21_850),
    "quickdraw": (120_750, 51_750),
    "real": (120_906, 52_041),
    "sketch": (48_212, 20_916),
}


def make_domain_entry(name: str) -> Entry:
    """Make the entry of a domain of DomainNet."""
    n_train, n_test = DOMAINS[name]
    return Entry(
        folder=f"domainnet/{name}", version="1.0.0", num_classes=345, n_train=n_train, n_test=n_test,
        licence="contains copyrighted material; fair use", url="http://ai.bu.edu/DomainNet/",
    )  # fmt: skip


def find_metric(task: str) -> str:
    """Return the customary metric of a task; accuracy where none is known."""
    known = TRAINED.get(task) or GLUE_TASKS.get(task)
    return known.metric if known else "accuracy"

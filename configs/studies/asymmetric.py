"""Does noise among related classes hurt what is related, what is not, or both? The papers' study of asymmetric noise.

    python -m nml_jax.main --config=configs/studies/asymmetric.py:digits
    python -m nml_jax.main --config=configs/studies/asymmetric.py:imagenet

On ImageNet the noise is among the 161 classes that overlap CIFAR-100 by WordNet (docs/guides/noise.md), and CIFAR-100
is the related task. Published (arXiv 2403.06869): at 1.25 to 10 % in-domain transfer to related classes and
out-of-domain transfer fall. On the digits it is among 0, 1 and 2; all downstream digits are unrelated to these.
"""

from ml_collections import ConfigDict

from configs.studies import twins
from nml_jax.errors import UserError

CLASSES = {"imagenet": ("imagenet_cifar100",)}


def get_config(twin: str = "digits") -> ConfigDict:
    if twin == "emoji":
        raise UserError("captions have no classes to exchange", "give digits, folder or imagenet")
    config = twins.make_twin(twin, "asymmetric")
    config.noise_kind = "asymmetric"
    config.name = f"studies_{twin}_asymmetric"  # its runs have the same rates as those of symmetric noise
    config.noise_classes = CLASSES.get(twin, (0, 1, 2))
    config.sweep.noise = (0.0, 0.0125, 0.025, 0.0375, 0.05, 0.1)
    return config.lock()

"""Does noise among related classes hurt what is related, what is not, or both? The papers' study of asymmetric noise.

    python -m nml_jax.main --config=configs/studies/asymmetric.py:digits
    python -m nml_jax.main --config=configs/studies/asymmetric.py:imagenet

`noise_related` names the downstream tasks whose classes the noise is among; their in-domain scores are drawn and
checked apart from those of the others. On ImageNet the noise is among the 161 classes that overlap CIFAR-100 by WordNet
(docs/guides/noise.md), and CIFAR-100 is related. On the digits it is among 0, 1 and 2: the task digits_seen is these,
learnt with true labels from images that pre-training has seen, and tested on others; digits_few is 5 to 9. With
`folder`, name your own: --config.downstream.tasks="('directory','NAME')" --config.noise_related="('NAME',)"; else all
tasks count as unrelated.

Published (arXiv 2403.06869), at 1.25 to 10 %: in-domain transfer to related classes and out-of-domain transfer fall.
What it says of unrelated in-domain tasks is unconfirmed; they are checked as under symmetric noise, "not lower".

The digits took 137 s of CPU time; on a GPU it was not run.
"""

from ml_collections import ConfigDict

from configs.studies import twins
from nml_jax.errors import UserError

CLASSES = {"imagenet": ("imagenet_cifar100",)}
RELATED = {"imagenet": ("cifar100",), "digits": ("digits_seen",), "cifar": ("cifar10_small",)}


def get_config(twin: str = "digits") -> ConfigDict:
    if twin == "emoji":
        raise UserError("captions have no classes to exchange", "give digits, folder or imagenet")
    config = twins.make_twin(twin, "asymmetric")
    config.noise_kind = "asymmetric"
    config.name = f"studies_{twin}_asymmetric"  # its runs have the same rates as those of symmetric noise
    config.noise_classes = CLASSES.get(twin, (0, 1, 2))
    config.noise_related = RELATED.get(twin, ())
    if twin == "digits":
        config.downstream.tasks = ("digits_few", "digits_seen")
    config.sweep.noise = (0.0, 0.0125, 0.025, 0.0375, 0.05, 0.1)
    return config.lock()

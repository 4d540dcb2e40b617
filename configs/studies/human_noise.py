"""Is human noise worse than symmetric noise of the same size? The papers did not ask.

    python -m nml_jax.main --config=configs/studies/human_noise.py:LABELS --config.data.path=prepared/mine

LABELS is a file with a person's labels of the training split: a .npy in record order, or a .csv of key,label. `human`
is compared, seed by seed, with symmetric noise on exactly as many records, and with clean labels. A twin with human
labels is CIFAR-10 with CIFAR-10N's; that was not run. 2,000 flowers at 32 pixels and a made file took 10 CPU minutes.
"""

from ml_collections import ConfigDict

from configs.studies import twins
from nml_jax.errors import UserError


def get_config(labels: str = "") -> ConfigDict:
    if not labels:
        raise UserError(
            "human_noise needs a file of labels", "write --config=configs/studies/human_noise.py:LABELS.npy"
        )
    config = twins.make_twin("folder", "human_noise")
    config.sweep.noise = ()
    config.sweep.conditions = (
        ("clean", (("noise", 0.0),)),
        ("symmetric", (("noise_kind", "matched"), ("noise_file", labels))),
        ("human", (("noise_kind", "labels"), ("noise_file", labels))),
    )
    return config.lock()

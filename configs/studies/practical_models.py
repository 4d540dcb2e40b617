"""Does NMTune help encoders that somebody else trained? The papers' table 1; text_models.py is table 2.

    python -m nml_jax.main --config=configs/studies/practical_models.py:weights/swin_large,weights/vit_large \
        --config.data.path=prepared/mine

Folders as they are downloaded (docs/guides/published.md), separated by commas, are the conditions. For the papers'
tasks:

    --config.downstream.tasks="('cifar10','dtd')" --config.downstream.catalogue=DIR

Published (arXiv 2403.06869), in-domain / out-of-domain mean for linear probe, MLP and NMTune: EfficientNet-B3
76.72/44.13, 76.87/45.95, 77.63/46.84; Swin-L 81.91/50.88, 82.51/51.21, 84.16/52.35; all lines are in
reporting/studies/published.json. 2,000 photos at 224 pixels take EfficientNet-Lite0 four minutes on two cores; the
large ones need an accelerator.
"""

from ml_collections import ConfigDict

from configs import published


def get_config(folders: str = "") -> ConfigDict:
    conditions = published.make_conditions(folders, "practical_models")
    config = published.get_config()
    with config.unlocked():
        config.name = "studies_practical_models"
        config.study = "practical_models"
        config.sweep.conditions = conditions
    return config.lock()

"""The section `tune` of configs/common.py for tests of heads: its defaults, but a small head."""

from ml_collections import ConfigDict

from configs import common


def make_tune(**changes) -> ConfigDict:
    tune = common.get_config().tune
    with tune.unlocked():
        tune.update({"width": 2, **changes})
    return tune

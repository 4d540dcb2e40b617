"""Check every section of a config with the module that reads it, whichever stages are to run."""

from ml_collections import ConfigDict

from nml_jax import objectives, runtime
from nml_jax.assembly import encoder, feature_sets, noisy_data
from nml_jax.data.embeddings import service
from nml_jax.data.images import transforms
from nml_jax.tasks import classification, detection, glue, texts
from nml_jax.training import finetune, optim, plan
from nml_jax.training.detection import program as detect
from nml_jax.tuning import diagnosis, methods


def check(config: ConfigDict) -> None:
    """Check the ranges of all sections.

    Raises:
        UserError: a value is out of range.
    """
    noisy_data.check_ranges(config.data)
    transforms.check_ranges(config.augment)
    objectives.check_ranges(config.objective)
    optim.check_ranges(config.optimizer)
    plan.check_ranges(config.train)
    classification.check_ranges(config.downstream)
    texts.check_ranges(config.texts)
    glue.check_ranges(config.glue)
    encoder.check_ranges(config.extract)
    feature_sets.check_ranges(config.features)
    methods.check_ranges(config.tune)
    finetune.check_ranges(config.finetune)
    detect.check_ranges(config.detect)
    detection.check_ranges(config.detect.data)
    diagnosis.check_ranges(config.diagnose)
    runtime.check_ranges(config.runtime)
    service.check_ranges(config)

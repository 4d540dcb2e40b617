"""Does tuning more parameters hide the noise? The papers' figure 4: linear probe, LoRA, full fine-tuning.

    python -m nml_jax.main --config=configs/studies/tuning_methods.py:digits

Published (arXiv 2403.06869): the differences between noise rates shrink from the linear probe to LoRA to full
fine-tuning.

The digits took 174 s of CPU time after noise_rates, whose runs it shares; on a GPU it was not run.
"""

from ml_collections import ConfigDict

from configs.studies import twins


def get_config(twin: str = "digits") -> ConfigDict:
    config = twins.make_twin(twin, "tuning_methods")
    twins.tune_encoders(config)
    config.sweep.noise = (0.0, 0.1, 0.3)
    config.tune.methods = ("lbfgs",)
    config.finetune.methods = ("lora", "full")
    return config.lock()

"""Does NMTune help text encoders that somebody else trained? Table 2 of arXiv 2403.06869. **Not run**.

    python -m nml_jax.main --config=configs/studies/text_models.py:weights/bert_l,weights/roberta_l,weights/gpt2 \
        --config.glue.folder=data/glue

Folders as they are downloaded from Hugging Face (docs/guides/published.md), separated by commas, are the conditions, on
all tasks of GLUE whose files are there, with their out-of-domain partners (docs/guides/glue.md). The table's fourth
row, the service text-ada-002, is the same with configs/text_api.py:text-embedding-ada-002, and

    --config.downstream.tasks="('glue',)" --config.glue.folder=data/glue --config.sweep.seed="(0,1,2)"

Neither the large models nor most of GLUE-X's sets were at hand. The paper's pooling, list of tasks and average are not
confirmed: `model.pool`, `downstream.tasks` and `glue.partners` set them.
"""

from ml_collections import ConfigDict

from configs import glue, published


def get_config(folders: str = "") -> ConfigDict:
    conditions = published.make_conditions(folders, "text_models")
    config = glue.get_config()
    with config.unlocked():
        config.name = "studies_text_models"
        config.study = "practical_models"
        config.sweep.conditions = conditions
    return config.lock()

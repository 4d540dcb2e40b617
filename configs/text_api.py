"""Take the vectors of texts that an embeddings service sells, and find the best head for them.

    export OPENAI_API_KEY=...
    python -m nml_jax.main --config=configs/text_api.py:text-embedding-3-small --config.texts.train=train.csv --dry_run
    python -m nml_jax.main --config=configs/text_api.py:text-embedding-3-small --config.texts.train=train.csv

The part after the colon is the service's name of the model. Any service with the interface of OpenAI's /v1/embeddings
will do: `--config.api.url=ADDRESS`, and `--config.runtime.api.key=NAME` for the environment variable that holds its
key. The dry run counts texts, those that were paid for before, tokens and, with `--config.runtime.api.price`, money.

The tables are those of configs/text.py, and what becomes of the features is the same. A text is asked for once: a cache
keeps every answer, for all splits, tasks and experiments. `--config.runtime.api.requests_per_minute` and
`tokens_per_minute` keep the limits of an account.
"""

from ml_collections import ConfigDict

from configs.published import make_config


def get_config(model: str = "") -> ConfigDict:
    config = make_config("", "text_api")
    if model:
        config.name = f"text_api_{model.replace('/', '_')}"
    config.model.name = "api"
    config.api.url = "https://api.openai.com/v1"
    config.api.model = model
    config.downstream.tasks = ("texts",)
    return config.lock()

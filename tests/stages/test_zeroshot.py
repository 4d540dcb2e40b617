"""Test zero-shot classification from the folder of a CLIP, as the command line runs it."""

from pathlib import Path

from configs import published
from nml_jax import main, runtime
from nml_jax.export import __main__ as export
from nml_jax.runs.rows import read_rows
from nml_jax.stages import zeroshot
from tests.scenes import clip_experiment, leaving

TASK = {"downstream.tasks": ("directory",), "downstream.test": ("val",), "zeroshot.retrieval": ("val",),
        "extract.batch": 24}  # fmt: skip


def test_an_open_clip_folder_scores_as_the_run_that_it_left(tmp_path: Path):
    """Weights, preprocessing and tokenizer come from the folder alone."""
    data = {"data.path": str(clip_experiment.prepare(tmp_path, train=4)), "data.source": "directory"}
    own = leaving.CLIPS["clip_bytes"] | TASK | data
    run = leaving.make_run(tmp_path / "noise=0.3,seed=0", **own)
    assert export.main([str(run), str(tmp_path / "folder")]) == 0

    config = published.get_config(str(tmp_path / "folder"))
    with config.unlocked():
        config.update_from_flattened_dict(TASK | data | {"stages": ("zeroshot",), "seed": 0})
    main.launch(config, tmp_path / "out", pinned={"seed": 0})
    zeroshot.run(leaving.make_config(**own), run, runtime.make_mesh())

    scores = [
        {(row.split, row.metric): row.value for row in read_rows(folder) if row.stage == "zeroshot"}
        for folder in (tmp_path / "out" / "noise=0,seed=0", run)
    ]
    assert scores[0] == scores[1]
    assert {metric for _, metric in scores[0]} > {"accuracy", "i2t_recall@1"}, scores
    assert 0 < scores[0]["val", "accuracy"] < 1

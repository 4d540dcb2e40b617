import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from nml_jax import console, predict
from nml_jax.assembly import encoder
from nml_jax.data.sources.digit_scenes import DigitScenes
from nml_jax.errors import NonFinite, UserError
from nml_jax.runs.rows import read_rows
from nml_jax.training import checkpoint, pretrained
from tests.scenes import detect_experiment

RUN = "noise=0.3,seed=0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("detect")
    detect_experiment.launch(workdir)
    return workdir


def list_detect_rows(workdir):
    return [row for row in read_rows(workdir / RUN) if row.stage == "detect"]


def test_rows_say_what_was_trained_on_what(finished):
    rows = list_detect_rows(finished)
    names = [row.metric for row in rows]
    assert names[:3] == ["box_AP", "box_AP50", "box_AP75"]
    assert "box_APl" not in names, "there are no objects of that size"
    for row in rows:
        assert (row.method, row.preset, row.task, row.split) == ("retina", "encoder", "digit scenes", "test")
        assert (row.n_train, row.n_test, row.step) == (16, 4, 6)
        assert (row.noise_kind, row.noise_asked, row.model) == ("symmetric", 0.3, "resnet18")
        assert 0 <= row.value <= 1


def test_results_are_in_the_format_of_coco(finished):
    folder = finished / RUN / "detect" / "retina"
    results = json.loads((folder / "results.json").read_text())
    assert results
    assert {tuple(sorted(one)) for one in results} == {("bbox", "category_id", "image_id", "score")}
    assert {one["category_id"] for one in results} <= set(range(1, 11))
    assert {one["image_id"] for one in results} <= set(range(4))
    meta = checkpoint.read_meta(folder / "checkpoints" / "6")
    assert meta["class_names"] == [str(i) for i in range(10)]


def test_the_report_shows_detectors_in_a_table_and_pictures(finished):
    page = (finished / "report.html").read_text()
    assert "RetinaNet (encoder)" in page
    assert "box AP50" in page
    assert page.count('src="data:image/jpeg;base64,') == 1
    assert (finished / RUN / "detect" / "retina" / "pictures.jpg").read_bytes()[:2] == b"\xff\xd8"
    summary = (finished / "summary.csv").read_text()
    assert "box_AR100" in summary


def test_a_finished_stage_is_skipped(finished, capfd):
    detect_experiment.launch(finished)
    err = capfd.readouterr().err
    assert "detect is done, skipped" in err
    assert "pretrain is done, skipped" in err


def test_another_start_is_only_added(finished, tmp_path, capfd):
    workdir = tmp_path / "more"
    shutil.copytree(finished, workdir)
    checkpoints = workdir / RUN / "detect" / "retina" / "checkpoints"
    before = checkpoints.stat().st_mtime_ns
    detect_experiment.launch(workdir, **{"detect.starts": ("encoder", "random")})
    assert "retina: is done" in capfd.readouterr().err
    assert checkpoints.stat().st_mtime_ns == before
    known = list_detect_rows(finished)
    rows = list_detect_rows(workdir)
    assert rows[: len(known)] == known
    assert {row.preset for row in rows[len(known) :]} == {"random"}
    detect_experiment.launch(workdir)
    assert list_detect_rows(workdir) == known, "the rows are those that the config asks for"


def test_an_interrupted_run_continues_to_the_same_bits(finished, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(finished, workdir)
    folder = workdir / RUN / "detect" / "retina"
    whole = checkpoint.list_steps(folder / "checkpoints")
    assert whole[-1] == 6
    assert len(whole) > 1
    shutil.rmtree(folder / "checkpoints" / "6")
    before = (folder / "results.json").read_bytes()
    for name in ("results.json", "pictures.jpg", "rows.jsonl"):
        (folder / name).unlink()
    detect_experiment.launch(workdir)
    assert checkpoint.list_steps(folder / "checkpoints")[-1] == 6
    assert (folder / "results.json").read_bytes() == before
    assert list_detect_rows(workdir) == list_detect_rows(finished)


def test_training_starts_from_the_encoder_without_its_head(finished):
    from nml_jax.stages import detect
    from nml_jax.training.pretrained import load_model

    loaded_encoder = load_model(finished / RUN)
    assert "head" in loaded_encoder.params
    workdir = finished / "frozen"
    # With a learning rate of almost 0 and running statistics the encoder stays what it was.
    shutil.copytree(finished / RUN, workdir / RUN)
    shutil.rmtree(workdir / RUN / "detect")
    tiny = {"detect.optimizer.lr": 1e-30, "detect.norm": "eval", "detect.optimizer.weight_decay": 0.0}
    detect_experiment.launch(workdir, force=("detect",), **tiny)
    meta, folder = None, workdir / RUN / detect.FOLDER / "retina" / "checkpoints" / "6"
    meta = checkpoint.read_meta(folder)
    assert meta["system"] == "retina"
    program_shapes = detect_model_shapes(meta)
    loaded = checkpoint.load(folder, {"model": program_shapes})["model"]
    assert set(loaded["params"]["encoder"]) == set(loaded_encoder.params) - {"head"}
    for name, leaf in flat(loaded["params"]["encoder"]).items():
        np.testing.assert_allclose(leaf, flat(loaded_encoder.params)[name], rtol=0, atol=1e-20)


@pytest.mark.parametrize("whole", [True, False])
def test_the_encoder_of_a_detector_is_what_init_from_takes(finished, tmp_path, whole, capfd):
    """A run that only trained a detector stands for it, and so does the detector's folder."""
    console.notice_once.cache_clear()
    folder = tmp_path / "run" / "detect" / "retina"
    shutil.copytree(finished / RUN / "detect" / "retina", folder)
    given = str(folder.parents[1] if whole else folder)
    config = detect_experiment.config(init_from=given)
    model = encoder.build(config, num_classes=3)
    params, state = pretrained.load_weights(given, config, model, jax.random.key(0), head_for="features")
    assert f"init_from={given} is a detector: its encoder is taken" in capfd.readouterr().err
    step = folder / "checkpoints" / "6"
    saved = checkpoint.load(step, {"model": checkpoint.describe_model(step)})["model"]
    trained = flat(saved["params"]["encoder"]) | flat(saved["model_state"]["encoder"])
    found = flat({name: of for name, of in params.items() if name != "head"}) | flat(state)
    assert found.keys() == trained.keys()
    for name, leaf in trained.items():
        np.testing.assert_array_equal(found[name], leaf)
    assert pretrained.count_classes(given) is None
    with pytest.raises(UserError, match="is a detector"):
        pretrained.load_model(given)
    wider = encoder.build(detect_experiment.config(**{"model.width": 8}), num_classes=3)
    with pytest.raises(UserError, match="another model than model"):
        pretrained.load_weights(given, config, wider, jax.random.key(0), head_for="features")


def test_a_dry_run_traces_the_step_and_refuses_to_train_without_weights(tmp_path, capfd):
    with pytest.raises(UserError, match="there is no encoder"):
        detect_experiment.launch(tmp_path, dry_run=True, stages=("detect",), noise=0.0)
    assert "6 steps of 8 images (3 epochs of 16), from encoder; canvas 32 x 32" in capfd.readouterr().out
    detect_experiment.launch(tmp_path, dry_run=True, stages=("detect",), **{"detect.starts": ("random",)})
    detect_experiment.launch(tmp_path, dry_run=True, stages=("detect",), init_from="nowhere", noise=0.0)
    assert "to obtain:\n  init_from: nowhere does not exist" in capfd.readouterr().out


@pytest.mark.slow  # the README's dry run traces the same
def test_a_dry_run_says_what_it_would_train(tmp_path, capfd):
    detect_experiment.launch(
        tmp_path, dry_run=True, **{"detect.systems": ("retina", "mask"), "detect.rpn.strides": (4,)}
    )
    out = capfd.readouterr().out
    assert "detect, each run:" in out
    assert "6 steps of 8 images (3 epochs of 16), from encoder; canvas 32 x 32" in out
    assert out.count("10 classes") >= 2
    assert not (tmp_path / RUN).exists()


def flat(tree):
    from nml_jax.training.leaves import name_leaves

    return {name: np.asarray(leaf) for name, leaf in name_leaves(tree).items()}


def detect_model_shapes(meta):
    from nml_jax import runtime, settings
    from nml_jax.tasks import detection
    from nml_jax.training.detection import program as detect

    config = settings.from_json(meta["config"])
    setup = detect.Setup(meta["system"], meta["num_classes"], detection.find_canvas(config.detect.data))
    model = detect.build_model(*settings.freeze_sections(config.model, config.detect), setup, runtime.make_mesh())
    params, state = model.shapes
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = {"params": params, "model_state": state, "ema": None}
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes)


NOT_UTF8 = "a\udcff.png"  # the byte 0xff, which other systems put into names


def write_photos(folder):
    (folder / "more").mkdir(parents=True)
    scenes = DigitScenes("test", 2, 32)
    for i, name in enumerate(("a.png", "more/b.png")):
        Image.fromarray(scenes.image(i)[:, : 32 - 8 * i]).save(folder / name)
    (folder / "a.png").rename(folder / NOT_UTF8)
    return folder


def test_predict_writes_results_and_pictures(finished, tmp_path, capfd):
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    assert predict.main([str(finished / RUN), str(photos), f"--out={out}"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert {one["file_name"] for one in results} == {"a\\xff.png", "more/b.png"}
    for one in results:
        x, y, w, h = one["bbox"]
        width = 32 if one["image_id"] == 0 else 24
        assert 0 <= x <= x + w <= width + 1e-3
        assert 0 <= y <= y + h <= 32 + 1e-3
        assert one["category"] == str(one["category_id"] - 1)
    for name, size in ((f"{NOT_UTF8}.jpg", (32, 32)), ("more/b.png.jpg", (24, 32))):
        assert Image.open(out / "pictures" / name).size == size
    said = capfd.readouterr().err
    assert f"{len(results)} detections" in said
    assert "not done" not in said


def test_predict_says_that_a_detector_is_not_done(finished, tmp_path, capfd):
    shutil.copytree(finished / RUN / "detect" / "retina", tmp_path / "detect" / "retina")
    (tmp_path / "detect" / "retina" / "rows.jsonl").unlink()
    photos = write_photos(tmp_path / "photos")
    assert predict.main([str(tmp_path), str(photos), f"--out={tmp_path / 'out'}"]) == 0
    assert "its training is not done; this is the detector after step 6" in capfd.readouterr().err


def test_predict_takes_odd_files(finished, tmp_path, capfd):
    """A name as long as can be gets a picture; a pipe, which would never end, is refused."""
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    name = "é" * 125 + ".png"
    (photos / "more" / "b.png").rename(photos / "more" / name)
    assert predict.main([str(finished / RUN), str(photos), f"--out={out}"]) == 0
    (picture,) = (out / "pictures" / "more").iterdir()
    assert picture.name.startswith("é" * 100)
    assert picture.suffix == ".jpg"
    os.mkfifo(photos / "pipe.jpg")
    assert predict.main([str(finished / RUN), str(photos), f"--out={tmp_path / 'other'}"]) == 2
    assert "pipe.jpg cannot be decoded: it is not a regular file" in capfd.readouterr().err


def test_predict_refuses_what_it_cannot_detect_in(finished, tmp_path, capfd):
    photos = write_photos(tmp_path / "photos")
    detector = str(finished / RUN / "detect" / "retina")
    for arguments, words in (
        ([str(finished), str(photos)], "is a folder without a detector"),
        ([detector, str(photos), "--proba"], "--proba is not for detectors"),
        ([detector, str(photos), f"--out={photos / 'out'}"], "lies inside"),
        ([detector, str(tmp_path / "none")], "cure: give a folder of images"),
    ):
        assert predict.main(arguments) == 2
        assert words in capfd.readouterr().err
    (photos / "c.jpg").write_bytes(b"no image")
    assert predict.main([detector, str(photos), f"--out={tmp_path / 'other'}"]) == 2
    assert "c.jpg cannot be decoded" in capfd.readouterr().err
    assert not (tmp_path / "other" / "results.json").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"detect.systems": ("yolo",)}, "detect.systems: unknown 'yolo'"),
        ({"detect.starts": ("middle",)}, "detect.starts: unknown 'middle'"),
        ({"detect.starts": ("random",), "detect.norm": "eval"}, "random weights have none"),
        ({"detect.starts": ("random",), "detect.freeze": 1}, "detect.freeze=1 would keep"),
        ({"detect.freeze": -1}, "detect.freeze must be at least 0"),
        ({"detect.low_quality": "theirs"}, "detect.low_quality='theirs'"),
        ({"detect.retina.p6_from": "C5"}, "detect.retina.p6_from='C5'"),
        ({"detect.retina.per": "images"}, "detect.retina.per='images'"),
        ({"detect.rpn.per": "sample"}, "detect.rpn.per='sample'"),
        ({"detect.anchors.rounded": "corner"}, "detect.anchors.rounded='corner'"),
        ({"detect.roi.level_rule": "detectron2"}, "detect.roi.level_rule='detectron2'"),
        ({"detect.rpn.before": (100,)}, "detect.rpn.before=(100,)"),
        ({"detect.max_detections": 0}, "detect.max_detections must be at least 1"),
        ({"detect.batch": 12}, "detect.batch"),
        ({"model.name": "vit_ti", "model.patch": 4}, "model.name=vit_ti"),
        ({"detect.optimizer.warmup_steps": 6}, "detect.optimizer.warmup_steps=6"),
        ({"detect.retina.strides": (4, 16)}, "strides (4, 16)"),
        ({"detect.data.source": "internet"}, "detect.data.source='internet'"),
        ({"detect.data.kinds": ("plane",)}, "digit scenes of the kinds"),
        ({"detect.data.kinds": ("empty",)}, "no image has an object"),
        ({"detect.data.scales": (64,)}, "detect.data.scales"),
        ({"detect.data.smallest": 64}, "no image has an object"),
        ({"detect.optimizer.schedule": "step"}, "detect.optimizer.milestones"),
        ({"stages": ("detect",)}, "holds no checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(overrides, words, tmp_path):
    with pytest.raises(UserError) as e:
        detect_experiment.launch(tmp_path, **overrides)
    assert words in e.value.cause
    assert not (tmp_path / RUN / "detect").exists()


def test_a_rate_that_is_too_high_ends_with_the_ids(tmp_path, finished):
    workdir = tmp_path / "high"
    shutil.copytree(finished / RUN, workdir / RUN)
    shutil.rmtree(workdir / RUN / "detect")
    rates = {"detect.optimizer.lr": 1e30, "detect.optimizer.warmup_steps": 0, "runtime.max_skipped": 2}
    with pytest.raises(NonFinite, match="ids of its batch: "):
        detect_experiment.launch(workdir, force=("detect",), **rates)

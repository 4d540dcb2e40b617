"""Test GLUE's tasks and their partners on small files in every layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import glue as config_file
from nml_jax.data.text.batches import list_texts
from nml_jax.errors import UserError
from nml_jax.tasks import glue
from nml_jax.tasks.classification import list_tasks, load_task
from nml_jax.tasks.glue_sets import GLUE_TASKS, SETS
from nml_jax.tasks.task import Task

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")


def write(path: Path, lines: list[str], end: str = "\n", mark: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((mark + "".join(line + end for line in lines)).encode())
    return path


def pairs(n: int, label: str, other: str, start: int = 0) -> list[str]:
    return [f"{i}\t{WORDS[i % 6]} {i + start}\tno {i + start}\t{label if i % 2 else other}" for i in range(n)]


def write_rte(folder: Path) -> Path:
    head = ["index\tsentence1\tsentence2\tlabel"]
    write(folder / "RTE" / "train.tsv", head + pairs(8, "entailment", "not_entailment"))
    write(folder / "RTE" / "dev.tsv", head + pairs(4, "entailment", "not_entailment", 100))
    write(folder / "RTE" / "test.tsv", ["index\tsentence1\tsentence2", "0\ta\tb"])
    return folder


def make_config(folder: Path, **keys: Any) -> Any:
    config = config_file.get_config()
    config.update_from_flattened_dict({"glue.folder": str(folder), **{f"glue.{key}": v for key, v in keys.items()}})
    glue._find_once.cache_clear()
    return config


def load(folder: Path, name: str, **keys: Any) -> Task:
    return load_task(name, make_config(folder, **keys))


def test_the_tables_fit_each_other():
    assert list(GLUE_TASKS) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    for name, task in GLUE_TASKS.items():
        for partner in task.partners.values():
            if SETS[name].classes:
                glue._map_classes(name, partner.of, partner)  # raises unless every class stands for one
            assert SETS[partner.of].url.startswith("https://")
    # the numbers that published files have: 0 is entailment for RTE and QNLI, and 1 is for WNLI
    assert [SETS[name].classes.index("entailment") for name in ("rte", "qnli", "wnli", "mnli", "snli")] == [
        0,
        0,
        1,
        0,
        0,
    ]
    # equivalent and duplicate are 1, and entailment, which stands for them, is 0
    flipped = {"rte": ("mrpc", "qqp"), "mrpc": ("rte", "hans"), "qqp": ("rte", "hans")}
    for name, other in flipped.items():
        for of, partner in GLUE_TASKS[name].partners.items():
            if of != "scitail":
                assert glue._map_classes(name, of, partner).tolist() == ([1, 0] if of in other else [0, 1]), (name, of)
    assert glue._map_classes("sst2", "flipkart", GLUE_TASKS["sst2"].partners["flipkart"]).tolist() == [0, 0, 1]
    scitail = GLUE_TASKS["rte"].partners["scitail"]
    assert glue._map_classes("rte", "scitail", scitail).tolist() == [0, 1]


def test_official_files_of_rte_and_mrpc(tmp_path: Path, capsys):
    write_rte(tmp_path)
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = [f'{i % 2}\t1\t2\t"quote {i}\tno "{i + 100}' for i in range(4)]
    write(tmp_path / "MRPC" / "train.tsv", [head, *rows, "1\t1\t2\tAlpha 100.\tno  100"], "\r\n", "\ufeff")
    write(tmp_path / "MRPC" / "msr_dev.txt", [head, rows[1]], "\r\n", "\ufeff")
    config = make_config(tmp_path)
    assert list_tasks(config) == ("mrpc", "rte")
    task = load_task("rte", config)
    assert (task.metric, task.train.class_names) == ("accuracy", ("entailment", "not_entailment"))
    assert task.train.labels.tolist() == [1, 0] * 4
    dev, mrpc = task.tests
    assert (dev.split, dev.domain, mrpc.split, mrpc.domain) == ("dev", "id", "mrpc", "ood")
    assert dev.source.labels.tolist() == [1, 0, 1, 0]
    # equivalent (1) is entailment (0), and train and dev are joined
    assert mrpc.source.labels.tolist() == [1, 0, 1, 0, 0, 0]
    assert list_texts(mrpc.source)[1] == ('"quote 1', 'no "101')
    own = load_task("mrpc", config)
    assert own.metric == "f1"
    assert own.train.class_names[1] == "equivalent"
    said = capsys.readouterr().err
    assert "rte: mrpc has 6 rows with labels; the published number is 4,076" in said
    assert "rte: mrpc: 0" not in said
    plan = "\n".join(glue.describe(config))
    assert "tests dev (id), mrpc (ood); no qqp, hans, scitail" in plan
    assert "not there: cola, sst2" in plan


def test_parquet_of_hugging_face_and_json_lines(tmp_path: Path):
    names = {"info": {"features": {"label": {"names": ["not_entailment", "entailment"], "_type": "ClassLabel"}}}}
    for split, n in (("train-00000-of-00002", 4), ("train-00001-of-00002", 2), ("validation-00000-of-00001", 2)):
        table = pa.table({"sentence1": [f"{split} {i}" for i in range(n)], "sentence2": ["b"] * n,
                          "label": [i % 2 for i in range(n)]})  # fmt: skip
        path = tmp_path / "glue" / "rte" / "data" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(names).encode()}), path)
    lines = [
        json.dumps({"premise": f"p {i}", "hypothesis": "h", "label": ["entails", "neutral"][i % 2]}) for i in range(4)
    ]
    write(tmp_path / "SciTail" / "scitail_1.0_test.jsonl", lines)
    task = load(tmp_path, "rte")
    assert task.train.labels.tolist() == [1, 0, 1, 0, 1, 0]  # by the names in the file, not by its numbers
    assert [t.source.labels.tolist() for t in task.tests] == [[1, 0], [0, 1, 0, 1]]


def test_mnli_is_tested_on_matched_and_mismatched(tmp_path: Path, capsys):
    head = ["premise\thypothesis\tlabel"]
    for split in ("train", "dev_matched", "dev_mismatched"):
        write(tmp_path / "MNLI" / f"{split}.tsv", head + [f"{split} {i}\th {i}\t{i % 3}" for i in range(6)])
    write(tmp_path / "SNLI" / "test.tsv", [*head, "a\tb\t-1", "c\td\t2", "e\tf\t-1"])
    task = load(tmp_path, "mnli")
    assert [(t.split, t.domain, len(t.source)) for t in task.tests] == [
        ("dev_matched", "id", 6), ("mnli_mismatched", "ood", 6), ("snli", "ood", 1)]  # fmt: skip
    assert list_texts(task.tests[1].source)[0] == ("dev_mismatched 0", "h 0")
    assert "mnli: snli: 2 rows without a label are left out, of 3" in capsys.readouterr().err
    wrong = load(tmp_path, "mnli", unlabelled="wrong").tests[2]
    assert wrong.source.labels.tolist() == [2, 3, 3]
    assert wrong.scoring == {"never": 1}
    assert wrong.source.class_names == ("entailment", "neutral", "contradiction", "no gold label")
    assert load(tmp_path, "mnli", partners=("none",)).tests[1:] == ()
    assert [t.split for t in load(tmp_path, "mnli", partners=("snli",)).tests] == ["dev_matched", "snli"]


def test_cola_without_header_and_its_two_domains(tmp_path: Path):
    rows = [f"gj04\t{i % 2}\t{'*' * (i % 2)}\tSentence {i}." for i in range(8)]
    write(tmp_path / "CoLA" / "train.tsv", rows)
    write(tmp_path / "CoLA" / "dev.tsv", rows[:5])
    assert [t.split for t in load(tmp_path, "cola").tests] == ["dev"]
    write(tmp_path / "CoLA" / "out_of_domain_dev.tsv", rows[:2])
    assert [t.split for t in load(tmp_path, "cola").tests] == ["dev"]  # dev holds it
    write(tmp_path / "CoLA" / "in_domain_dev.tsv", rows[2:5])
    task = load(tmp_path, "cola")
    assert [(t.split, t.domain, len(t.source)) for t in task.tests] == [("dev_in", "id", 3), ("cola_out", "ood", 2)]
    assert task.metric == "mcc"
    assert task.train.class_names == ("unacceptable", "acceptable")
    assert len(load(tmp_path, "cola", partners=("none",)).tests[0].source) == 5


def test_scores_of_stsb_and_sick(tmp_path: Path):
    rows = [f"news\tf\t2012\t{i}\t{score}\ta {i}\tb {i}" for i, score in enumerate((5, 0, 0.625, 1.875, 3.1))]
    write(tmp_path / "STS-B" / "sts-train.csv", [rows[0] + "\tsource\tlicence", *rows[1:]])
    write(tmp_path / "STS-B" / "sts-dev.csv", rows[:2])
    head = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    write(tmp_path / "SICK" / "SICK_test.txt", [head, "1\ta\tb\t1.5\tNEUTRAL", "2\tc\td\t5\tENTAILMENT"], "\r\n")
    task = load(tmp_path, "stsb", stsb="classes")
    assert task.train.labels.tolist() == [4, 0, 0, 2, 2]  # halves go to the even class
    assert task.tests[1].source.labels.tolist() == [0, 4]
    assert task.tests[1].scoring == {"ordered": True}


def test_rows_are_drawn_and_shared_texts_are_said(tmp_path: Path, capsys):
    write_rte(tmp_path)
    head = "premise\thypothesis\tlabel"
    write(
        tmp_path / "HANS" / "train.tsv",
        [head, *(f"Beta 1 .\tNO 1!\t{w}" for w in ("entailment", "non-entailment") * 3)],
    )
    task = load(tmp_path, "rte", train_rows=4, test_rows=2)
    assert (len(task.train), len(task.tests[0].source), len(task.tests[1].source)) == (4, 4, 2)
    assert sorted(task.train.labels.tolist()) == [0, 0, 1, 1]
    assert load(tmp_path, "rte", train_rows=4).train.labels.tolist() == task.train.labels.tolist()
    load(tmp_path, "rte")
    said = capsys.readouterr().err
    assert "rte: train: 4 of 8 rows are taken" in said
    assert "rte: hans: 6 of 6 rows are training rows, too; 2 of 2 different sentences occur in training" in said


HEAD = "sentence1\tsentence2\tlabel"


@pytest.mark.parametrize(("lines", "words"), [
    ([HEAD, "a\tb\t0", "a\tb"], r"dev\.tsv, line 3: 2 cells, but 3 columns"),
    ([HEAD, "a\tb\t2"], r"dev\.tsv, line 2: 'label' is '2', which is no class of rte"),
    ([HEAD, "a\tb\tmaybe"], "'maybe', which is no class"),
    (["a\tb\t0", "c\td\t1"], "no column 'sentence1 and sentence2'"),
    (["sentence1\tlabel", "a\t0"], "no column 'sentence1 and sentence2'"),
    (["sentence1\tsentence2", "a\tb"], "no row of dev has a label: they are hidden"),
    ([HEAD, "a\tb\t-1", "c\td\t-1"], "no row of dev has a label"),
    ([HEAD], "has no rows"),
    ([HEAD.replace("sentence2", "sentence1"), "a\tb\t0"], "two columns have one name"),
])  # fmt: skip
def test_bad_rows(tmp_path: Path, lines: list[str], words: str):
    write(write_rte(tmp_path) / "RTE" / "dev.tsv", lines)
    with pytest.raises(UserError, match=words):
        load(tmp_path, "rte")


def test_bad_scores(tmp_path: Path):
    rows = [f"news\tf\t2012\t{i}\t{i}\ta {i}\tb {i}" for i in range(4)]
    write(tmp_path / "STS-B" / "train.tsv", rows)
    for score in ("nan", "5.5", "-0.1", "high", "inf"):
        write(tmp_path / "STS-B" / "dev.tsv", [*rows, f"news\tf\t2012\t9\t{score}\ta\tb"])
        with pytest.raises(UserError, match=rf"dev\.tsv, line 5: 'score' is '{score}', not a number from 0 to 5"):
            load(tmp_path, "stsb")


def test_bad_folders(tmp_path: Path):
    with pytest.raises(UserError, match="GLUE's tasks have no folder"):
        load_task("rte", config_file.get_config())
    with pytest.raises(UserError, match="there is no folder"):
        load(tmp_path / "none", "rte")
    with pytest.raises(UserError, match="holds none of GLUE's tasks"):
        list_tasks(make_config(tmp_path))
    with pytest.raises(UserError, match="has no rte with the splits train and dev"):
        load(tmp_path, "rte")
    folder = write_rte(tmp_path)
    (folder / "RTE" / "dev.tsv").write_bytes((folder / "RTE" / "train.tsv").read_bytes())
    with pytest.raises(UserError, match=r"is the same as .*train\.tsv, which heads are trained on"):
        load(folder, "rte")
    write(folder / "RTE" / "dev_2.tsv", [HEAD, "a\tb\t0"])
    with pytest.raises(UserError, match="may all be the split 'dev'"):
        load(folder, "rte")
    for keys, words in (({"partners": ("imbd",)}, "unknown 'imbd'"), ({"unlabelled": "keep"}, "drop, wrong")):
        with pytest.raises(UserError, match=words):
            glue.check_ranges(make_config(folder, **keys).glue)


def test_labels_numbered_from_one(tmp_path: Path):
    for split in ("train", "dev"):
        write(tmp_path / "SST-2" / f"{split}.tsv", ["sentence\tlabel", *(f"{split} {i} \t{i % 2}" for i in range(4))])
    write(tmp_path / "yelp_polarity" / "test.csv", ['"1","bad, very ""bad"""', '"2","good\nfood"'])
    yelp = load(tmp_path, "sst2").tests[1].source
    assert yelp.labels.tolist() == [0, 1]
    assert list_texts(yelp) == [('bad, very "bad"',), ("good\nfood",)]
    write(tmp_path / "yelp_polarity" / "test.csv", ['"1","bad"', '"1","worse"'])
    with pytest.raises(UserError, match="all labels are '1'"):
        load(tmp_path, "sst2")


@pytest.mark.skipif(not Path("../shared/data/language").is_dir(), reason="needs ../shared/data/language")
def test_published_files():
    config = make_config(Path("../shared/data/language"), partners=("mrpc", "rte"))
    task = load_task("rte", config)
    assert (len(task.train), [len(t.source) for t in task.tests]) == (2490, [277, 4076])
    assert np.bincount(task.tests[1].source.labels).tolist() == [2753, 1323]


def test_array_records_that_tfds_has_prepared(tmp_path: Path):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    names = ["not_entailment", "entailment"]  # numbered the other way round, so that only the names can be right
    features = tfds.features.FeaturesDict({
        "sentence1": tfds.features.Text(), "sentence2": tfds.features.Text(), "idx": np.int32,
        "label": tfds.features.ClassLabel(names=names),
    })  # fmt: skip
    folder = tmp_path / "glue" / "rte" / "2.0.0"
    identity = DatasetIdentity(
        name="glue", config_name="rte", version=tfds.core.Version("2.0.0"), data_dir=str(folder), module_name="tests"
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    folder.mkdir(parents=True)
    writer = tfds.core.SequentialWriter(info, 10, file_format="array_record", overwrite=False)
    writer.initialize_splits(["train", "validation", "test"])
    for split, n in (("train", 4), ("validation", 2), ("test", 2)):
        rows = [{"sentence1": f"é {split} {i}", "sentence2": "b", "idx": i, "label": -1 if split == "test" else i % 2}
                for i in range(n)]  # fmt: skip
        writer.add_examples({split: rows})
    writer.close_all()
    task = load(tmp_path, "rte")
    assert task.train.labels.tolist() == [1, 0, 1, 0]
    assert list_texts(task.train)[1] == ("é train 1", "b")
    assert task.tests[0].source.labels.tolist() == [1, 0]

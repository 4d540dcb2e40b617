import numpy as np
import pytest

from nml_jax.data import class_names
from nml_jax.data.class_names import NameIndex, clean_name, find_alike, merge_spellings, simplify_number

ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("ant", "ant"),
        (" ant\u00a0", "ant"),
        ("\ufeffant\u200b", "ant"),
        ("\tant\x00", "ant"),
        ("cafe\u0301", "café"),
        ("ice  cream", "ice  cream"),
        ("-1", "-1"),
        (ENGLAND, ENGLAND),
        ("\u2764\ufe0f", "\u2764\ufe0f"),
        ("a\u00adb", "a\u00adb"),
    ],
)
def test_a_name_loses_what_nobody_sees_at_its_ends(name, clean):
    assert clean_name(name) == clean
    assert clean_name(clean) == clean


def test_long_runs_of_blanks_take_no_time():
    long = "a" + " \u200b" * 500_000 + "b"
    assert clean_name(f" {long} ") == long
    assert find_alike([long, "ab"]) == [(long, "ab")]


def test_a_text_of_invisible_characters_is_empty():
    assert all(
        class_names.is_empty(text)
        for text in (
            "",
            " ",
            "\u00a0\ufeff",
            "\u200b\u00ad",
            "\x00\x1f\x7f\u2060\u2800\ufe0f",
            "\u17b4\ufe00\u180b\U000e0100\ufff0",
        )
    )
    assert class_names.is_empty("\u17b4\ufe00\u180b\U000e0100\ufff0")
    assert not any(class_names.is_empty(text) for text in ("a", "\u200ba", ".", "\u2764\ufe0f", "é"))


def test_numbers_without_what_does_not_change_them():
    same = {"2": "2", "02": "2", "2.0": "2", "+2": "2", "2.": "2", "-02.50": "-2.5", "-0.0": "0", ".5": "0.5"}
    assert {name: simplify_number(name) for name in same} == same
    assert [simplify_number(name) for name in ("2e0", "nan", "x", "", ".", "1 2", "٢", "1,5")] == [None] * 8


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["2", "2.0", "02"], ["2", "2", "2"]),
        (["2", "2.0", "x"], ["2", "2.0", "x"]),
        (["007", "008"], ["007", "008"]),
        (["007", "7", "010"], ["7", "7", "10"]),
        (["1.0", "2.0"], ["1.0", "2.0"]),
        (["1.0", "2"], ["1", "2"]),
        (["2", " 2 "], ["2", "2"]),
        (["café", "cafe\u0301", "café "], ["café"] * 3),
        ([], []),
    ],
)
def test_spellings_are_merged(names, classes):
    assert list(merge_spellings(names).values()) == classes


def test_names_that_look_alike_are_found(capsys):
    assert find_alike(["b", "Ant", "ant", "ice cream", "icecream", "ice\u200b cream"]) == [
        ("Ant", "ant"),
        ("ice cream", "icecream"),
        ("ice cream", "ice\u200b cream"),
    ]
    assert find_alike(["2", "2.0", "x", "20"]) == [("2", "2.0")]
    assert find_alike(["1", "\uff11", "\ufb01r", "fir"]) == [("fir", "\ufb01r"), ("1", "\uff11")]
    assert class_names.warn_alike(["a", "b"], "x.csv") == []
    assert capsys.readouterr().err == ""
    class_names.warn_alike([f"{c}{i}" for i in range(30) for c in "aA"], "x.csv")
    said = capsys.readouterr().err
    assert said.startswith("x.csv: names that look alike stay apart: 'A0' and 'a0', 'A1' and 'a1', ")
    assert "and 10 more pairs; if they are one, write them alike\n" in said


def test_labels_that_are_no_text_are_left_alone():
    for labels in (np.array([2, 1]), np.array([], str), np.array([True])):
        assert class_names.clean_labels(labels, "x") is labels
    assert class_names.clean_labels(np.array(["2", "02", "2.0"]), "x").tolist() == ["2"] * 3


def test_a_name_is_found_in_any_spelling():
    index = NameIndex(["café", "Ant", "2"])
    assert [index.find(name) for name in ("cafe\u0301", " Ant", "ant", "02", "2 ")] == [0, 1, None, None, 2]
    numbers = NameIndex([7, 10])
    assert [numbers.find(name) for name in (7, "07", "10.0", "1")] == [0, 0, 1, None]
    doubtful = NameIndex(["café", "cafe\u0301"])
    assert [doubtful.find(name) for name in ("café", "cafe\u0301", "café ")] == [0, 1, None]


def test_counts_in_one_line():
    assert class_names.describe_counts({"ant": 2, "bee": 0}) == "2 classes: 'ant' 2, 'bee' 0"
    many = class_names.describe_counts({f"c{i}": i for i in range(30)})
    assert many.startswith("30 classes: 'c0' 0, ")
    assert many.endswith(", 'c19' 19, and 10 more (0 to 29 records each)")


def test_classes_that_a_split_lacks_are_named():
    counts = class_names.count_labels(np.array([0, 2, 0]), ["ant", "bee", 7])
    assert counts == {"ant": 2, "bee": 0, "7": 1}
    assert class_names.describe_split("test", counts) == "test: 2 classes: 'ant' 2, '7' 1; no record of 'bee'"

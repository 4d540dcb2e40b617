"""Named sets of classes: the table, where it is found in data, and the walk up WordNet."""

import json

import pytest

from nml_jax.errors import UserError
from nml_jax.noise import class_sets, wordnet

NAME = "imagenet_cifar100"


def test_the_table_agrees_with_itself():
    table = class_sets.list_sets()[NAME]
    assert len(table["classes"]) == len(table["positions"]) == 161
    assert list(table["classes"]) == sorted(table["classes"])
    assert table["positions"] == sorted({*table["positions"]})
    assert table["positions"][-1] < table["of"] == 1000
    assert {c for of in table["classes"].values() for c in of.split(", ")} <= wordnet.SENSES.keys()
    assert len(wordnet.SENSES) == 100
    assert wordnet.DOUBTS.keys() <= wordnet.SENSES.keys()
    assert table["classes"]["n02071294"] == "dolphin, whale"  # killer whale
    assert "n01443537" not in table["classes"]  # goldfish


def test_a_set_is_found_by_ids_of_classes_or_in_all_of_imagenet():
    table = class_sets.list_sets()[NAME]
    numbered = [str(i) for i in range(1000)]
    assert class_sets.find_classes((NAME,), numbered) == tuple(table["positions"])
    some = ["n01443537", "n02071294", "n01484850 great white shark", "n09999999"]
    assert class_sets.find_classes((NAME,), some) == (1, 2)
    assert class_sets.find_classes((NAME, 3), some) == (1, 2, 3)
    assert class_sets.find_classes((4, 2), ["a", "b"]) == (2, 4)  # their range is checked where noise is drawn
    with pytest.raises(UserError, match="no set 'imagenet_cifar10'"):
        class_sets.find_classes(("imagenet_cifar10",), numbered)
    for names in (["cat", "dog"], numbered[:999], ["0", "1"]):
        with pytest.raises(UserError, match="a set of ImageNet's 1,000 classes"):
            class_sets.find_classes((NAME,), names)


def test_a_class_lies_below_another_through_any_parent():
    parents = {"1": [], "2": ["1"], "3": ["2", "9"], "9": []}
    assert set(wordnet.climb("3", parents)) == {"1", "2", "3", "9"}


def test_the_command_writes_the_table(tmp_path):
    offsets = {offset for of in wordnet.SENSES.values() for offset in of}
    below = [f"{i:08}" for i in range(1, 1001)]
    lines = ["  1 This software and database is being provided ..."]
    lines += [f"{o} 05 n 02 a_word 0 another 3 000 | gloss" for o in sorted(offsets)]
    lines += [f"{b} 05 n 01 word 0 002 @ {'02131653' if b == below[2] else below[0] if i else '02084071'} n 0000 ~ "
              f"00000009 n 0000 | gloss" for i, b in enumerate(below)]  # fmt: skip
    lines += ["02084071 05 n 0a " + " ".join(f"dog{i} 0" for i in range(10)) + " 001 @i 02131653 n 0000 | ten words"]
    (tmp_path / "data.noun").write_text("\n".join(lines))
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"n{b}\n" for b in below))
    assert wordnet.main([str(tmp_path), str(ids), "--out", str(tmp_path / "out.json")]) == 0
    table = json.loads((tmp_path / "out.json").read_text())[NAME]
    assert len(table["classes"]) == 1000  # all below the dog, which is an instance below the bear
    assert set(table["classes"].values()) == {"bear"}


def test_bad_input_ends_in_one_line(tmp_path, capsys):
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"n{i:08}\n" for i in range(1, 1001)))
    assert wordnet.main([str(tmp_path / "none"), str(ids)]) == 2
    (tmp_path / "data.noun").write_text("00000001 05 n 01 word 0 000 | gloss")
    assert wordnet.main([str(tmp_path), str(ids)]) == 2
    ids.write_text("n00000001\n")
    assert wordnet.main([str(tmp_path), str(ids)]) == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == 3
    assert "Traceback" not in told

import json

import pytest

from nml_jax.errors import UserError
from nml_jax.tasks import prompts

# The layout of CLIP_benchmark's files: task -> list. They contain an empty name and repeated names.
NAMES = {"mnist": ["0", "1"], "imagenet1k": ["missile", "crane", "missile"], "near": ["near", ""]}
TEMPLATES = {
    "mnist": ['a photo of the number: "{c}".'],
    "imagenet1k": ["a bad {c}.", "at {c}% of {c}"],
    "dmlab": ["{c}"],
}


@pytest.fixture
def write(tmp_path):
    def write(content, name="file.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return str(path)

    return write


def error(call, *args):
    """Return cause and cure of the UserError, and check that both are one line."""
    with pytest.raises(UserError) as e:
        call(*args)
    assert "\n" not in e.value.cause + e.value.cure
    return e.value.cause, e.value.cure


def test_the_default_set_is_small_and_fits_every_task():
    ours = prompts.read_templates("", "digits")
    assert ours == prompts.read_templates("", "anything else")
    assert 3 <= len(set(ours)) == len(ours) <= 12
    assert all(template.count("{c}") == 1 for template in ours)


def test_own_names_get_spaces_for_underscores():
    assert prompts.read_class_names("", "cifar10", ("aeroplane", "polar_bear")) == ("aeroplane", "polar bear")


def test_a_plain_list_holds_for_every_task(write):
    names = prompts.read_class_names(write(["a_b", "c"]), "mnist", ("0", "1"))
    assert names == ("a_b", "c")  # names from a file stay as they are
    assert prompts.read_templates(write(["one {c}", "two {}"]), "mnist") == ("one {c}", "two {}")


@pytest.mark.parametrize("task", ["mnist", "imagenet1k"])
def test_the_layout_of_clip_benchmark(write, task):
    names, templates = write(NAMES, "en_classnames.json"), write(TEMPLATES, "en_zeroshot_classification_templates.json")
    assert prompts.read_class_names(names, task, NAMES[task]) == tuple(NAMES[task])
    assert prompts.read_templates(templates, task) == tuple(TEMPLATES[task])


def test_repeated_and_empty_entries_are_accepted(write):
    assert prompts.read_class_names(write(NAMES), "near", ("a", "b")) == ("near", "")
    assert prompts.read_templates(write(["a {c}", "a {c}"]), "mnist") == ("a {c}", "a {c}")


def test_texts_are_class_by_class():
    assert prompts.fill_templates(("cat", "polar bear"), ("a {c}.", "{}")) == [
        ["a cat.", "cat"],
        ["a polar bear.", "polar bear"],
    ]


def test_only_placeholders_are_replaced():
    assert prompts.fill_templates(("{c} \\1 {}",), ("at {c}% of {d} {c}",)) == [["at {c} \\1 {}% of {d} {c} \\1 {}"]]


def test_prompts_by_class_as_cupl_has_them(write):
    path = write({"pets": {"cat": ["A cat has whiskers.", "It meows."], "dog": ["A dog barks."]}})
    by_class = prompts.read_templates(path, "pets")
    assert prompts.fill_templates(("dog", "cat"), by_class) == [["A dog barks."], ["A cat has whiskers.", "It meows."]]
    cause, cure = error(prompts.fill_templates, ("cat", "cow"), by_class)
    assert "'cow'" in cause
    assert "cat, dog" in cure


def test_a_class_in_another_form_of_unicode_is_found(write, capsys):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert prompts.read_class_names(write([decomposed, "Ant", "ant"]), "x", "abc") == (composed, "Ant", "ant")
    assert "names that look alike stay apart: 'Ant' and 'ant'" in capsys.readouterr().err
    assert prompts.read_class_names("", "x", [decomposed]) == (composed,)
    by_class = prompts.read_templates(write({"x": {decomposed: ["A café."], "ant ": ["An ant."]}}), "x")
    assert prompts.fill_templates(("ant", composed), by_class) == [["An ant."], ["A café."]]
    cause, _ = error(prompts.read_templates, write({"x": {composed: ["a"], decomposed: ["b"]}}), "x")
    assert "two entries for 'café': 'caf\\xe9' and 'cafe\\u0301'" in cause
    cause, _ = error(prompts.read_templates, write('{"x": ["{}"], "x": ["a {}"]}'), "x")
    assert "two entries for 'x'" in cause


def test_a_wrong_number_of_names(write):
    cause, cure = error(prompts.read_class_names, write(NAMES), "mnist", ("zero", "one", "two"))
    assert "names 2 classes" in cause
    assert "'mnist' has 3" in cause
    assert "zero, one, two" in cure


@pytest.mark.parametrize("template", ["a photo.", "a photo of a {class}.", "a photo of a { c }.", ""])
def test_a_template_without_its_placeholder(write, template):
    cause, cure = error(prompts.read_templates, write(["a {c}", template]), "mnist")
    assert repr(template) in cause
    assert "{c}" in cure


def test_a_task_that_is_not_in_the_file(write):
    cause, cure = error(prompts.read_templates, write(TEMPLATES), "emoji")
    assert "'emoji'" in cause
    assert "mnist, imagenet1k, dmlab" in cure
    _, cure = error(prompts.read_templates, write({f"t{i}": ["{c}"] for i in range(50)}), "emoji")
    assert cure.endswith("t39 and 10 more")


@pytest.mark.parametrize("content", ["", "[", "{c}", "['a']"])
def test_no_json(write, content):
    cause, cure = error(prompts.read_class_names, write(content), "mnist", ("0",))
    assert "is not JSON" in cause
    assert "list" in cure


def test_no_text(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes(b'["caf\xe9"]')
    assert "is not JSON" in error(prompts.read_class_names, str(path), "mnist", ("0",))[0]


@pytest.mark.parametrize("path", ["missing.json", ""])
def test_no_file(tmp_path, path):
    cause, _ = error(prompts.read_templates, str(tmp_path / path), "mnist")
    assert "cannot read" in cause
    assert str(tmp_path) in cause


@pytest.mark.parametrize(
    "content", [1, None, "text", [], ["a", 1], [["a"]], {"mnist": 3}, {"mnist": []}, {"mnist": {"a": 1}}]
)
def test_other_layouts(write, content):
    path = write(json.dumps(content))
    for call in (
        lambda: prompts.read_templates(path, "mnist"),
        lambda: prompts.read_class_names(path, "mnist", ("0", "1")),
    ):
        assert "not a list of strings" in error(call)[0]

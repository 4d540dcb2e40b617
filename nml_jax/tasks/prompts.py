"""Class names and prompt templates for zero-shot classification.

Both come from JSON files. A file is a list of strings for every task, or an object from task name to list, like
CLIP_benchmark's `en_classnames.json` and `en_zeroshot_classification_templates.json`. A task's templates may also be an
object from class name to finished prompts (the CuPL layout, arXiv 2209.03320).

{c}, or {} as in open_clip, marks the place of the class name in a template. Published lists repeat entries: a repeated
template counts twice, and of two classes with the same name only the first can be predicted.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nml_jax.data.class_names import NameIndex, clean_name, compose, warn_alike
from nml_jax.errors import UserError

Templates = tuple[str, ...] | dict[str, tuple[str, ...]]  # templates, or finished prompts by class name

DEFAULT = Path(__file__).with_name("prompts.json")
PLACEHOLDER = re.compile(r"\{c?\}")


def read_templates(path: str, task: str) -> Templates:
    """Read the prompt templates of a task.

    Args:
        path: JSON file; "": a small set of our own for photographs and renderings.
        task: key to look up if the file is an object.

    Returns:
        The templates with their placeholders; from a file in the CuPL layout, prompts by class name.

    Raises:
        UserError: the file is missing or has another layout, it lacks the task, a list is empty, or a template has no
            placeholder.
    """
    content = _look_up(path or str(DEFAULT), task)
    if isinstance(content, Mapping) and content:
        return {name: _check_strings(prompts, f"{path}, {task!r}, {name!r}") for name, prompts in content.items()}
    templates = _check_strings(content, f"{path}, {task!r}")
    for template in templates:
        if not PLACEHOLDER.search(template):
            raise UserError(
                f"the prompt template {template!r} of {path} has no placeholder",
                "mark the place of the class name by {c}, as in 'a photo of a {c}.'",
            )
    return templates


def read_class_names(path: str, task: str, own_names: Sequence[str]) -> tuple[str, ...]:
    """Read the names of a task's classes for prompts, in the order of the class ids.

    Args:
        path: JSON file; "": use `own_names`, with spaces instead of underscores.
        task: key to look up if the file is an object.
        own_names: the dataset's own names, one for each class.

    Raises:
        UserError: the file is missing or has another layout, it lacks the task, or it has too few or too many names.
    """
    if not path:
        return tuple(compose(name).replace("_", " ") for name in own_names)
    names = _check_strings(_look_up(path, task), f"{path}, {task!r}")
    if len(names) != len(own_names):
        raise UserError(
            f"{path} names {len(names)} classes; the task {task!r} has {len(own_names)}",
            f"give one name per class, in the order of the class ids: {_join_names(own_names)}",
        )
    names = tuple(map(compose, names))
    _warn_once(path, names)
    return names


@functools.cache
def _warn_once(path: str, names: tuple[str, ...]) -> None:
    warn_alike(names, path)


def fill_templates(names: Sequence[str], templates: Templates) -> list[list[str]]:
    """Make the prompts of every class.

    Args:
        names: class names from `read_class_names`.
        templates: templates from `read_templates`.

    Raises:
        UserError: the templates are prompts by class name, and a class is missing.
    """
    if isinstance(templates, Mapping):
        index, prompts = NameIndex(templates), list(templates.values())
        places = [index.find(name) for name in names]
        if None in places:
            missing = names[places.index(None)]
            cure = f"the file has prompts for: {_join_names(templates)}"
            raise UserError(f"there are no prompts for the class {missing!r}", cure)
        return [list(prompts[place]) for place in places if place is not None]
    return [[PLACEHOLDER.sub(lambda _, name=name: name, template) for template in templates] for name in names]


def _look_up(path: str, task: str) -> Any:
    """Return the content of a JSON file for the task."""

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object. Raise UserError if two of its names are spellings of one: only one value would count."""
        spellings: dict[str, str] = {}
        for key, _ in pairs:
            if (clean := clean_name(key)) in spellings:
                two = f"{spellings[clean]!a} and {key!a}"
                raise UserError(f"{path} has two entries for {clean!r}: {two}", "keep one of them")
            spellings[clean] = key
        return dict(pairs)

    try:
        content = json.loads(Path(path).read_text("utf-8-sig"), object_pairs_hook=make_object)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}", "name a JSON file, or leave the key empty") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not JSON: {e}", 'write a list, ["...", ...], or {"task": ["...", ...], ...}') from e
    if not isinstance(content, dict):
        return content
    if (place := NameIndex(content).find(task)) is None:
        raise UserError(f"{path} has nothing for the task {task!r}", f"it has: {_join_names(content)}")
    return list(content.values())[place]


def _check_strings(value: Any, where: str) -> tuple[str, ...]:
    """Return a list of strings as a tuple. Raise UserError for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        shown = json.dumps(value, ensure_ascii=False)
        raise UserError(f"{where}: {shown:.60} is not a list of strings", 'write ["...", ...] with at least one string')
    return tuple(value)


def _join_names(names: Any) -> str:
    """Join the first forty names for a message of one line."""
    shown = [" ".join(str(name).split()) for name in names]
    return ", ".join(shown[:40]) + (f" and {len(shown) - 40} more" if len(shown) > 40 else "")

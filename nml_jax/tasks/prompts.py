"""Class names and prompt templates for zero-shot classification, and the texts that they make.

Both come from JSON files: a list of strings, which holds for every task, or an object from the name of a task to its
list, as CLIP_benchmark lays out `en_classnames.json` and `en_zeroshot_classification_templates.json`. In place of a
task's templates there may be an object from class name to finished prompts, its CuPL layout (arXiv 2209.03320).

A template marks the place of the class name by {c}, or by {} as open_clip does. Lists may repeat themselves, as
published ones do: a template that stands twice counts twice, and of two classes of one name only the first can win.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError

Templates = tuple[str, ...] | dict[str, tuple[str, ...]]  # for every class, or finished prompts by class name

DEFAULT = Path(__file__).with_name("prompts.json")
PLACEHOLDER = re.compile(r"\{c?\}")


def read_templates(path: str, task: str) -> Templates:
    """The prompt templates of a task.

    Args:
        path: JSON file; "": a small set of our own, for photographs and renderings.
        task: key to look up where the file is an object.

    Returns:
        The templates, each with its placeholder; or, from a file in CuPL's layout, prompts by class name.

    Raises:
        UserError: the file is missing or no JSON of these layouts, it lacks the task, a list is empty, or a template
            has no placeholder.
    """
    found = _look_up(path or str(DEFAULT), task)
    if isinstance(found, Mapping) and found:
        return {name: _strings(prompts, f"{path}, {task!r}, {name!r}") for name, prompts in found.items()}
    for template in (given := _strings(found, f"{path}, {task!r}")):
        if not PLACEHOLDER.search(template):
            raise UserError(
                f"the prompt template {template!r} of {path} has no placeholder",
                "mark the place of the class name by {c}, as in 'a photo of a {c}.'",
            )
    return given


def read_class_names(path: str, task: str, given: Sequence[str]) -> tuple[str, ...]:
    """The names of a task's classes, as prompts shall call them, in the order of the class ids.

    Args:
        path: JSON file; "": `given`, with blanks in place of underscores.
        task: key to look up where the file is an object.
        given: the dataset's own names, one for every class.

    Raises:
        UserError: the file is missing or no JSON of these layouts, it lacks the task, or the number of names is not
            that of the classes.
    """
    if not path:
        return tuple(name.replace("_", " ") for name in given)
    names = _strings(_look_up(path, task), f"{path}, {task!r}")
    if len(names) != len(given):
        raise UserError(
            f"{path} names {len(names)} classes; the task {task!r} has {len(given)}",
            f"give one name per class, in the order of the class ids: {_some(given)}",
        )
    return names


def fill_templates(names: Sequence[str], templates: Templates) -> list[list[str]]:
    """For every class the texts that describe it.

    Args:
        names: of `class_names`.
        templates: of `templates`.

    Raises:
        UserError: the templates are prompts by class name, and that of a class is not among them.
    """
    if isinstance(templates, Mapping):
        if missing := [name for name in names if name not in templates]:
            raise UserError(f"there are no prompts for the class {missing[0]!r}", f"there are: {_some(templates)}")
        return [list(templates[name]) for name in names]
    return [[PLACEHOLDER.sub(lambda _, name=name: name, template) for template in templates] for name in names]


def _look_up(path: str, task: str) -> Any:
    """What the JSON file holds for the task."""
    try:
        content = json.loads(Path(path).read_text("utf-8-sig"))
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}", "name a JSON file, or leave the key empty") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is no JSON: {e}", 'write a list, ["...", ...], or {"task": ["...", ...], ...}') from e
    if not isinstance(content, dict):
        return content
    if task not in content:
        raise UserError(f"{path} has nothing for the task {task!r}", f"it has: {_some(content)}")
    return content[task]


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        shown = json.dumps(value, ensure_ascii=False)
        raise UserError(f"{where}: {shown:.60} is no list of strings", 'write ["...", ...], with one or more in it')
    return tuple(value)


def _some(names: Any) -> str:
    """Names for a message of one line: the first forty."""
    shown = [" ".join(str(name).split()) for name in names]
    return ", ".join(shown[:40]) + (f" and {len(shown) - 40} more" if len(shown) > 40 else "")

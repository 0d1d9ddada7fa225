"""Reads a recipe file and overrides into a validated `Recipe`, or raises one error that lists every fault.

This checks the schema only; `verst.launcher.check.check` finds the other faults. Relative paths in a recipe
are relative to the directory where the command is called, as in a shell. The recipe.yaml of a run folder has
absolute paths.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from verst.launcher.recipe.faults import Fault, RecipeError, nearest, shown
from verst.launcher.recipe.recipe import Recipe, sections_of
from verst.launcher.recipe.yaml_file import Place, RecipeFile, read_recipe_file
from verst.runtime.data.config import UNION_TAGS, EvalConfig

# Values that replace missing or faulty required keys, so that the rest of the file can be checked in the same
# pass.
_STAND_INS: dict[Place, Any] = {
    ("name",): "unnamed",
    ("model",): {"path": "."},
    ("model", "path"): ".",
    ("data",): {"train": {"path": "."}},
    ("data", "train"): {"path": "."},
    ("data", "train", "path"): ".",
    ("algorithm",): {"steps": 1, "prompts_per_step": 1, "samples_per_prompt": 1},
    ("algorithm", "steps"): 1,
    ("algorithm", "prompts_per_step"): 1,
    ("algorithm", "samples_per_prompt"): 1,
    ("rollout",): {"reward": "builtins:float"},
    ("rollout", "reward"): "builtins:float",
}


def load_recipe(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe, applies the overrides and validates it against the schema only. Raises RecipeError."""
    file, recipe, faults = parse_recipe(path, overrides)
    if faults or recipe is None:
        raise RecipeError(file.name, [file.line(fault) for fault in faults])
    return recipe


def parse_recipe(
    path: Path, overrides: list[str] | tuple[str, ...]
) -> tuple[RecipeFile, Recipe | None, list[Fault]]:
    """Returns the file, the recipe and all faults that the schema finds.

    If there are faults, the recipe has defaults in place of the faulty values, so that further checks can
    still run. It is None when nothing usable remains. Raises RecipeError when the file is not YAML.
    """
    file = read_recipe_file(path)
    file.override(overrides)
    faults = list(file.faults)
    recipe, schema_faults = _validate(file.data)
    return file, recipe, faults + schema_faults


def _validate(data: dict[str, Any]) -> tuple[Recipe | None, list[Fault]]:
    try:
        return Recipe.model_validate(data, strict=True), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    rest = copy.deepcopy(data)
    messages: dict[Place, list[str]] = {}
    for detail in details:
        place = _place(detail["loc"], data, missing=detail["type"] == "missing")
        message = _message(detail, place, data)
        if message not in messages.setdefault(place, []):
            messages[place].append(message)
        _mend(rest, place)
    faults = [Fault(".".join(map(str, place)), _joined(lines)) for place, lines in messages.items()]
    try:
        return Recipe.model_validate(rest, strict=True), faults
    except ValidationError:
        return None, faults


def _place(loc: tuple[str | int, ...], data: Any, missing: bool) -> Place:
    """The key that an error is about: pydantic's location without the union branches that it appends."""
    place: list[str | int] = []
    for number, part in enumerate(loc):
        inside = isinstance(data, dict) and part in data
        if not inside and not (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            if part in UNION_TAGS and number + 1 < len(loc):
                continue
            if isinstance(data, dict) and part == data.get("kind"):
                continue  # of a section whose kind decides its keys, pydantic names the kind, too
            if missing:
                place.append(part)
            break
        place.append(part)
        data = data[part]
    return tuple(place)


def _message(detail: ErrorDetails, place: Place, data: dict[str, Any]) -> str:
    """The message for one of pydantic's errors: the value, and what would be right."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "union_tag_not_found":
        return "has no key `kind`, which says what it is"
    if kind == "union_tag_invalid":
        return f"is of kind {shown(context.get('tag'))}, must be {context.get('expected_tags', '')}".replace(
            "'", ""
        )
    if kind == "missing":
        return f"missing. It is {_meaning(place, data)}"
    if kind == "extra_forbidden":
        return f"no such key (its value is {shown(value)}).{nearest(str(place[-1]), _keys(place[:-1], data))}"
    wanted = {
        "int_type": "an integer",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "a string",
        "list_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping of keys",
        "literal_error": str(context.get("expected", "")).replace("'", ""),
        "greater_than": f"greater than {context.get('gt')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than": f"less than {context.get('lt')}",
        "less_than_equal": f"at most {context.get('le')}",
        "finite_number": "a finite number",
        "string_pattern_mismatch": "letters, digits, '.', '_' and '-', beginning with a letter or digit",
    }.get(kind)
    if wanted:
        return f"is {shown(value)}, must be {wanted}"
    return f"is {shown(value)}: {detail['msg'].removeprefix('Value error, ')}"


def _joined(messages: list[str]) -> str:
    """Joins the messages for the branches of a union: "is 'x', must be an integer or a list"."""
    head, separator, _ = messages[0].partition(", must be ")
    if len(messages) == 1 or not separator or any(not m.startswith(head + separator) for m in messages):
        return "; ".join(messages)
    return head + separator + " or ".join(m.removeprefix(head + separator) for m in messages)


def _mend(data: dict[str, Any], place: Place) -> None:
    """Removes a faulty value from `data`, or replaces it if its key is required. Of a list, removes all of it."""
    parent: Any = data
    for length, part in enumerate(place[:-1]):
        if isinstance(parent, dict) and isinstance(parent.get(part), list):
            _mend(data, place[: length + 1])
            return
        parent = parent.get(part) if isinstance(parent, dict) else None
        if not isinstance(parent, dict):
            return
    if place[-1:] == ("path",) and (
        place[:3] == ("data", "train", "sources") or place[:2] == ("data", "eval")
    ):
        parent[place[-1]] = "."
    elif place in _STAND_INS:
        parent[place[-1]] = copy.deepcopy(_STAND_INS[place])
    elif place:
        parent.pop(place[-1], None)


def _model_at(place: Place, data: Any) -> type[BaseModel] | None:
    """The schema class of the section at `place` of `data`; None if there is none."""
    classes: list[type[BaseModel]] = [Recipe]
    named = False  # whether the next part is a name that the recipe chooses
    for part in place:
        present = isinstance(data, dict) and part in data
        present |= isinstance(data, list) and isinstance(part, int) and part < len(data)
        data = data[part] if present else None
        if named:
            named = False
        elif (
            classes
            and classes[0] is EvalConfig
            and part not in EvalConfig.model_fields
            and place[:2] == ("data", "eval")
        ):
            continue  # a name that the user gave, of one of several evaluation sets
        elif not isinstance(part, int):
            fields = classes[0].model_fields.items() if classes else ()
            type_ = next((field.annotation for name, field in fields if part == (field.alias or name)), None)
            named = get_origin(type_) is dict
            classes = sections_of(type_)
        kind = data.get("kind") if isinstance(data, dict) else None
        if kind is not None and len(classes) > 1:
            classes = [c for c in classes if get_args(c.model_fields["kind"].annotation) == (kind,)]
    return classes[0] if classes else None


def _keys(place: Place, data: Any) -> list[str]:
    model = _model_at(place, data)
    return [] if model is None else [field.alias or name for name, field in model.model_fields.items()]


def _meaning(place: Place, data: Any) -> str:
    """The meaning of a required key: its description, or the first line of its section's docstring."""
    model = _model_at(place[:-1], data)
    if model is None:
        return "required"
    field = next(f for name, f in model.model_fields.items() if place[-1] == (f.alias or name))
    section = _model_at(place, data)
    text = field.description or (section.__doc__ if section is not None else None) or "required"
    return text.strip().splitlines()[0].rstrip(".")

"""Generates docs/recipes.md, the reference of every recipe key, from the schema. `verst schema` prints it."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from verst.launcher.recipe.recipe import Recipe, sections_of

_HEAD = """# Recipes: every key

A recipe is one YAML file that describes a whole run. `verst schema` generates this page; a test keeps it
current.

- A heading is a section, and each row is a key of it. `a section` stands for a section of its own, below.
- Relative paths are relative to the directory where the command is called. The `recipe.yaml` in the run
  folder has absolute paths and every default filled in.
- `verst run recipe.yaml a.dotted.key=value` overrides a key. The value is YAML.
- A key that ends in `_s` takes seconds. `none` as a default means that nothing is set.
- `1e-6` is a number. Only `true` and `false` are booleans. A key that is given twice is an error.
- `trainer.megatron` and `rollout.sglang` take the argument names of Megatron and SGLang, whose own parsers
  check them. Hooks are dotted paths, `package.module:function`: see [hooks.md](hooks.md).
"""


def recipe_reference() -> str:
    """The whole page as Markdown."""
    return _HEAD + "".join(_sections(Recipe, ""))


def _sections(model: type[BaseModel], place: str) -> list[str]:
    title = f"\n## {place or 'At the top'}\n\n"
    intro = " ".join((model.__doc__ or "").split())
    rows, inner = [], []
    for name, field in model.model_fields.items():
        key = field.alias or name
        sections = sections_of(field.annotation)
        if len(sections) > 1:
            rows.append(_row(key, "list of sections", field))
            for entry in sections:
                (kind,) = get_args(entry.model_fields["kind"].annotation)
                inner += _sections(entry, f"{place}.{key}.N ({kind})")
            continue
        section = sections[0] if sections else None
        if section is not None:
            names = ".NAME" if get_origin(field.annotation) is dict else ""
            inner += _sections(section, (f"{place}.{key}" if place else key) + names)
            if place and not field.is_required():
                rows.append(_row(key, "a section", field))
            continue
        rows.append(_row(key, _type(field.annotation) + _bounds(field), field))
    table = ["| key | type | default | meaning |\n|---|---|---|---|\n", *rows] if rows else []
    return [title, f"{intro}\n" if intro else "", "\n" if table else "", *table, *inner]


def _row(key: str, type_: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    return (
        "| "
        + " | ".join(cell.replace("|", "\\|") for cell in (f"`{key}`", type_, _default(field), meaning))
        + " |\n"
    )


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not NoneType)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is list:
        return "list"
    if origin is dict:
        return "mapping"
    return {bool: "true or false", int: "integer", float: "number", str: "string"}[annotation]


def _bounds(field: FieldInfo) -> str:
    words = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return "".join(
        f", {sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in words.items()
        if getattr(rule, name, None) is not None
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    default = field.get_default(call_default_factory=True)
    if default is None or default is PydanticUndefined:
        return "none"
    if isinstance(default, BaseModel) or (default == {} and sections_of(field.annotation)):
        return ""
    if isinstance(default, list) and default and isinstance(default[0], BaseModel):
        return f"`{[entry.model_dump() for entry in default]}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"

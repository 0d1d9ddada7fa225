"""YAML with places: reads a recipe file into plain data and remembers file:line:column of every key.

Differs from `yaml.safe_load` in three ways that have cost people a run: a key given twice is a fault
(YAML keeps the last silently), `1e-6` is a number (YAML 1.1 reads a string), and `no` or `on` are strings.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from verst.launcher.recipe.faults import Fault, RecipeError

Place = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers and booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp)
        for tag, regexp in resolvers
        if not tag.endswith((":bool", ":int", ":float", ":timestamp"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tfTF")
)
# YAML 1.1 takes 24:00:00, a time limit, for the number 86400.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"
    ),
    list("-+0123456789."),
)


@dataclass
class RecipeFile:
    """Plain data and where each of its keys stands."""

    name: str  # as the user wrote it
    data: dict[str, Any] = field(default_factory=dict)
    marks: dict[Place, str] = field(default_factory=dict)  # place -> "file:line:column" or "command line"
    faults: list[Fault] = field(default_factory=list)

    def where(self, place: Place) -> str:
        """The place's own mark or that of the nearest thing around it: a missing key has none itself."""
        for length in range(len(place), -1, -1):
            if place[:length] in self.marks:
                return self.marks[place[:length]]
        return self.name

    def line(self, fault: Fault) -> str:
        """A fault as one line: where, what, why."""
        place = (
            tuple(int(part) if part.isdigit() else part for part in fault.place.split("."))
            if fault.place
            else ()
        )
        return f"{self.where(place)}: {fault.place}{': ' if fault.place else ''}{fault.message}"

    def override(self, text: str) -> None:
        """Applies `trainer.megatron.lr=1e-6`; the value is YAML. Faults are collected, not raised."""
        dotted, equals, written = text.partition("=")
        place = tuple(dotted.split("."))
        if not equals or not all(place):
            self.faults.append(Fault("", f"override {text!r} is not of the form a.dotted.place=value"))
            return
        try:
            value = yaml.load(written, _Loader)
        except yaml.YAMLError as error:
            self.faults.append(Fault(dotted, f"override {text!r}: the value is not YAML ({error})"))
            return
        parent: Any = self.data
        for part in place[:-1]:
            child = parent.get(part)
            if child is None:
                child = parent[part] = {}
            if not isinstance(child, dict):
                self.faults.append(
                    Fault(dotted, f"override {text!r}: `{part}` holds {child!r}, not a mapping")
                )
                return
            parent = child
        parent[place[-1]] = value
        for known in [known for known in self.marks if known[: len(place)] == place]:
            del self.marks[known]
        for length in range(1, len(place) + 1):
            self.marks.setdefault(place[:length], "command line")


def read_recipe_file(path: Path) -> RecipeFile:
    """Reads the file. Raises RecipeError when it cannot be read or is not YAML."""
    file = RecipeFile(name=str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError(str(path), [f"cannot be read: {reason}"]) from error
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(str(path), ["is empty; recipes/quickstart.yaml is an example"])
        data = _walk(loader, node, (), file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}: " if mark else ""
        raise RecipeError(str(path), [f"{where}not YAML: {error.problem}"]) from error
    if not isinstance(data, dict):
        raise RecipeError(str(path), [f"holds {type(data).__name__}, not a mapping of sections"])
    file.data = data
    return file


def _walk(loader: _Loader, node: yaml.Node, place: Place, file: RecipeFile) -> Any:
    """Builds the node's value; notes marks and duplicate keys on the way."""
    file.marks.setdefault(place, _mark(file.name, node))
    if isinstance(node, yaml.MappingNode):
        own = {id(key_node) for key_node, _ in node.value}
        loader.flatten_mapping(node)  # `<<: *anchor`; what it brings stands first, and may be replaced
        mapping: dict[str, Any] = {}
        merged: set[Any] = set()
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                key = str(key)
            inside = (*place, key)
            if id(key_node) not in own:
                merged.add(key)
            elif key in merged:
                merged.remove(key)
                del file.marks[inside]
            elif key in mapping:
                first = file.marks[inside]
                file.faults.append(
                    Fault(
                        ".".join(map(str, inside)),
                        f"given twice, at {first} and {_mark(file.name, key_node)}",
                    )
                )
            file.marks.setdefault(inside, _mark(file.name, key_node))
            mapping[key] = _walk(loader, value_node, inside, file)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_walk(loader, child, (*place, index), file) for index, child in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def _mark(name: str, node: yaml.Node) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

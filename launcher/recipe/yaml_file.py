"""Reads a recipe file into plain data and remembers the file:line:column of every key.

It differs from `yaml.safe_load` where that has cost people a run. A key that is given twice is a fault (YAML
silently keeps the last one). `1e-6` is a number (YAML 1.1 reads a string). `no` and `on` are strings (YAML
1.1 reads booleans), and so are `2024_10` and `0123`, which may be names of accounts.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from verst.launcher.recipe.faults import Fault, RecipeError
from verst.launcher.recipe.overrides import split_overrides

Place = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads numbers and booleans as YAML 1.2 does."""


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
# YAML 1.1 would read the time limit 24:00:00 as the number 86400.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$"
        r"|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"
    ),
    list("-+0123456789."),
)


@dataclass
class RecipeFile:
    """The plain data of a YAML file, and the position of each of its keys."""

    name: str  # the file's path as the user wrote it
    data: dict[str, Any] = field(default_factory=dict)
    marks: dict[Place, str] = field(default_factory=dict)  # place -> "file:line:column" or "command line"
    faults: list[Fault] = field(default_factory=list)

    def where(self, place: Place) -> str:
        """The position of a key. A missing key has none, so this gives the position of the section around it."""
        for length in range(len(place), -1, -1):
            if place[:length] in self.marks:
                return self.marks[place[:length]]
        return self.name

    def line(self, fault: Fault) -> str:
        """Formats a fault as one line: its position, its key and its message."""
        place = (
            tuple(int(part) if part.isdigit() else part for part in fault.place.split("."))
            if fault.place
            else ()
        )
        return (
            f"{fault.where or self.where(place)}: {fault.place}{': ' if fault.place else ''}{fault.message}"
        )

    def override(self, texts: Iterable[str]) -> None:
        """Applies overrides, e.g. `trainer.megatron.lr=1e-6`. A value is YAML. Faults are added to `faults`."""
        overrides, faults = split_overrides(texts)
        self.faults += faults
        for dotted, written in overrides:
            self._override(dotted, written)

    def _override(self, dotted: str, written: str) -> None:
        text = f"{dotted}={written}"
        place: Place = tuple(dotted.split("."))
        try:
            value = yaml.load(written, _Loader)
        except yaml.YAMLError as error:
            self.faults.append(Fault(dotted, f"override {text!r}: the value is not valid YAML ({error})"))
            return
        parent: Any = self.data
        for depth, part in enumerate(place[:-1]):
            if isinstance(parent, list):
                child = parent[int(part)]
            else:
                child = parent.get(part)
                if child is None:
                    child = parent[part] = {}
            if isinstance(child, list) and (fault := _no_entry(place[depth + 1], child)):
                self.faults.append(Fault(dotted, f"override {text!r}: `{part}` {fault}"))
                return
            if isinstance(child, list):
                place = (*place[: depth + 1], int(place[depth + 1]), *place[depth + 2 :])
            elif not isinstance(child, dict):
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


def _no_entry(part: str | int, entries: list[Any]) -> str | None:
    """Why `part` names no entry of a list; None if it does."""
    if str(part).isdecimal() and int(part) < len(entries):
        return None
    last = len(entries) - 1
    return (
        f"is a list: `{part}` must be the number of an entry, 0 to {last}" if entries else "is an empty list"
    )


def read_recipe_file(path: Path) -> RecipeFile:
    """Reads a YAML file. Raises RecipeError when it cannot be read or is not a YAML mapping."""
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
    """Builds the value of a YAML node, and records positions and duplicate keys in `file`."""
    file.marks.setdefault(place, _mark(file.name, node))
    if isinstance(node, yaml.MappingNode):
        own = {id(key_node) for key_node, _ in node.value}
        loader.flatten_mapping(
            node
        )  # `<<: *anchor`: its keys come first, and the mapping's own may replace them
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

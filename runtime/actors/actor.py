"""What an actor is: a class whose public `async def` methods can be called from other processes.

```python
class Rollout(Actor):
    async def drain(self, version: int) -> DrainReport: ...
```

The annotations are the wire types: msgspec structs, numpy arrays, and builtins. They are read once per
class, and a method that cannot cross the wire is an error then, not at the first call.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import msgspec


class Actor:
    """Subclass it. Public `async def` methods are callable by the run's other members.

    Arrays that arrive are read-only views of the message. Arrays that are returned are sent without a
    copy, so they must not be changed afterwards.
    """


class Method(msgspec.Struct, frozen=True):
    """One callable method: its arguments as a struct type, its result's type and its Python signature."""

    name: str
    arguments: type[msgspec.Struct]
    result: Any
    signature: inspect.Signature  # without self

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> msgspec.Struct:
        """The call's arguments as the struct that travels. Raises TypeError as a local call would."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return self.arguments(*bound.arguments.values())


_methods: dict[type, dict[str, Method]] = {}


def methods(actor: type[Actor]) -> dict[str, Method]:
    """The callable methods of an actor class by name. Raises TypeError for one that cannot be on the wire."""
    if actor not in _methods:
        if not (isinstance(actor, type) and issubclass(actor, Actor)):
            raise TypeError(f"{actor!r} is not a subclass of Actor")
        _methods[actor] = {
            name: _describe(actor, name, function)
            for name, function in inspect.getmembers(actor, inspect.iscoroutinefunction)
            if not name.startswith("_")
        }
    return _methods[actor]


def _describe(actor: type[Actor], name: str, function: Callable[..., Any]) -> Method:
    where = f"{actor.__qualname__}.{name}"
    hints = typing.get_type_hints(function)
    if "return" not in hints:
        raise TypeError(f"{where}: annotate what it returns (-> None if nothing)")
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1:]
    fields: list[Any] = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{where}: *{parameter.name} cannot cross the wire: name each argument")
        if parameter.name not in hints:
            raise TypeError(f"{where}: annotate {parameter.name}: the annotation is its wire type")
        fields.append((parameter.name, hints[parameter.name]))
    arguments = msgspec.defstruct(f"{actor.__name__}_{name}", fields, array_like=True, frozen=True)
    return Method(name, arguments, hints["return"], signature.replace(parameters=parameters))

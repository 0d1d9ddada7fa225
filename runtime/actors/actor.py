"""Defines `Actor`, a class whose public `async def` methods can be called from other processes.

```python
class Rollout(Actor, concurrency=8):
    async def drain(self, version: int) -> DrainReport: ...
    async def tokens(self, prompt: str) -> AsyncIterator[int]:
        yield …
```

A method that yields is a stream: `async for token in handle.tokens("…")` (`streams.py`).

The annotations are the wire types: msgspec structs, numpy arrays and builtins. They are read once per class,
so a method that cannot be called over the wire is an error then, not at its first call.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Any, ClassVar

import msgspec


class Actor:
    """The base class of actors. The run's other members can call its public `async def` methods.

    Arrays in the arguments are read-only views of the message. Returned arrays are sent without a copy, so
    they must not be changed afterwards.

    At most `concurrency` calls run at once (by default any number). With 1 they run one after another, each
    caller's in the order in which it made them. Up to `backlog` more wait for their turn. Further calls are
    refused, so that an actor that cannot keep up reports it instead of growing.
    """

    concurrency: ClassVar[int | None] = None
    backlog: ClassVar[int] = 4096

    def __init_subclass__(cls, concurrency: int | None = None, backlog: int | None = None) -> None:
        super().__init_subclass__()
        for name, value, least in (("concurrency", concurrency, 1), ("backlog", backlog, 0)):
            if value is not None:
                if value < least:
                    raise ValueError(f"{cls.__qualname__}: {name}={value}, must be {least} or more")
                setattr(cls, name, value)


class Method(msgspec.Struct, frozen=True):
    """One callable method: the struct type of its arguments, its signature and its result's type.

    For a stream, the result's type is that of each item.
    """

    name: str
    arguments: type[msgspec.Struct]
    result: Any
    signature: inspect.Signature  # without self
    streams: bool
    positional: int  # number of parameters that are not keyword-only; those come first
    least: int  # with this many leading arguments, every parameter without a default has a value
    defaults: tuple[Any, ...]  # of all parameters

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> msgspec.Struct:
        """Packs a call's arguments into the struct that is sent. Raises TypeError as a local call would."""
        if not kwargs and self.least <= len(args) <= self.positional:
            return self.arguments(*args, *self.defaults[len(args) :])
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return self.arguments(*bound.arguments.values())

    def call(self, actor: Actor | None, arguments: msgspec.Struct) -> Any:
        """Calls the method on `actor`. Returns a coroutine, or for a stream an asynchronous generator."""
        bound: Callable[..., Any] = getattr(actor, self.name)
        values = msgspec.structs.astuple(arguments)
        if self.positional == len(values):
            return bound(*values)
        names = arguments.__struct_fields__[self.positional :]
        return bound(*values[: self.positional], **dict(zip(names, values[self.positional :], strict=True)))


_methods: dict[type, dict[str, Method]] = {}


def methods(actor: type[Actor]) -> dict[str, Method]:
    """Returns the callable methods of an actor class by name.

    Raises TypeError for a method that cannot be called over the wire.
    """
    if actor not in _methods:
        if not (isinstance(actor, type) and issubclass(actor, Actor)):
            raise TypeError(f"{actor!r} is not a subclass of Actor")
        _methods[actor] = {
            name: _describe(actor, name, function)
            for name, function in inspect.getmembers(actor, _is_callable)
            if not name.startswith("_")
        }
    return _methods[actor]


def _is_callable(attribute: Any) -> bool:
    return inspect.iscoroutinefunction(attribute) or inspect.isasyncgenfunction(attribute)


def _describe(actor: type[Actor], name: str, function: Callable[..., Any]) -> Method:
    where = f"{actor.__qualname__}.{name}"
    hints = typing.get_type_hints(function)
    if "return" not in hints:
        raise TypeError(f"{where}: annotate the return type (-> None if it returns nothing)")
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1:]
    fields: list[Any] = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{where}: *{parameter.name} cannot be sent: name each argument")
        if parameter.name not in hints:
            raise TypeError(f"{where}: annotate {parameter.name}: the annotation is its wire type")
        fields.append((parameter.name, hints[parameter.name]))
    arguments = msgspec.defstruct(
        f"{actor.__name__}_{name}", fields, array_like=True, frozen=True, forbid_unknown_fields=True
    )
    streams = inspect.isasyncgenfunction(function)
    result = _item(where, hints["return"]) if streams else hints["return"]
    return Method(
        name,
        arguments,
        result,
        signature.replace(parameters=parameters),
        streams,
        positional=sum(p.kind is not p.KEYWORD_ONLY for p in parameters),
        least=max((n for n, p in enumerate(parameters, 1) if p.default is p.empty), default=0),
        defaults=tuple(p.default for p in parameters),
    )


def _item(where: str, hint: Any) -> Any:
    """The type of a stream's items, from the method's return annotation."""
    if typing.get_origin(hint) not in (AsyncIterator, AsyncGenerator, AsyncIterable):
        raise TypeError(f"{where}: it yields, so annotate the type of its items: -> AsyncIterator[...]")
    return typing.get_args(hint)[0]

"""Handles: objects with an actor's methods that call one member, or all members of a role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from verst.runtime.actors.actor import Actor, Method, methods
from verst.runtime.actors.directory import MemberInfo
from verst.runtime.actors.errors import ActorError, MemberLost


class Caller(Protocol):
    """Makes the calls (`calls.py`): `call` gives the result, `stream` its items. `timeout` is in seconds."""

    def call(
        self, role: str, index: int, method: Method, arguments: msgspec.Struct, timeout: float
    ) -> Awaitable[Any]: ...

    def stream(
        self, role: str, index: int, method: Method, arguments: msgspec.Struct, timeout: float
    ) -> AsyncGenerator[Any]: ...


class Handle:
    """Calls one member by name. If another process takes the name over, that one is called from then on."""

    def __init__(self, actor: type[Actor], role: str, index: int, timeout_s: float, caller: Caller) -> None:
        self._actor = actor
        self._role = role
        self._index = index
        self._timeout_s = timeout_s
        self._caller = caller

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = _method(self._actor, name)
        make = self._caller.stream if method.streams else self._caller.call

        def call(*args: Any, **kwargs: Any) -> Any:
            return make(self._role, self._index, method, method.bind(args, kwargs), self._timeout_s)

        setattr(self, name, call)  # so that the next look-up does not come here
        return call

    def __repr__(self) -> str:
        return f"<{self._actor.__name__} {self._role}-{self._index}>"


class ActorGroup[A: Actor]:
    """Calls the members of a role: a call goes to all at once and gives a list of results by index.

    In the list, a dead member is represented by its MemberLost. Any other failure (RemoteError, CallTimeout,
    …) is raised after all have answered. `settle` instead returns every failure as a value, by the member's
    index. A stream is called on one member: `group[3].tokens(…)`.

    The group consists of the members that are present at each call. If `indices` are given, it is exactly
    those, and an absent one gives MemberLost.
    """

    def __init__(
        self,
        actor: type[A],
        role: str,
        timeout_s: float,
        caller: Caller,
        present: Callable[[str], Awaitable[list[MemberInfo]]],
        indices: Sequence[int] | None,
    ) -> None:
        self._actor = actor
        self._role = role
        self._timeout_s = timeout_s
        self._caller = caller
        self._present = present
        self._indices = None if indices is None else sorted(indices)

    def __getitem__(self, index: int) -> A:
        """The member with this index (not the n-th member)."""
        return Handle(self._actor, self._role, index, self._timeout_s, self._caller)  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Callable[..., Awaitable[list[Any]]]:
        if _method(self._actor, name).streams:
            raise AttributeError(
                f"{self._actor.__name__}.{name} is a stream: call it on one member, group[index]"
            )

        async def call(*args: Any, **kwargs: Any) -> list[Any]:
            answers = (await self.settle(name, *args, **kwargs)).values()
            for answer in answers:
                if isinstance(answer, ActorError) and not isinstance(answer, MemberLost):
                    raise answer
            return list(answers)

        return call

    async def settle(self, name: str, /, *args: Any, **kwargs: Any) -> dict[int, Any]:
        """Calls method `name` on all members. Returns {index: result or ActorError}, ordered by index."""
        method = _method(self._actor, name)
        arguments = method.bind(args, kwargs)
        indices = self._indices
        if indices is None:
            indices = [info.index for info in await self._present(self._role)]

        async def one(index: int) -> Any:
            try:
                return await self._caller.call(self._role, index, method, arguments, self._timeout_s)
            except ActorError as error:
                return error

        answers = await asyncio.gather(*(one(index) for index in indices))
        return dict(zip(indices, answers, strict=True))


def _method(actor: type[Actor], name: str) -> Method:
    try:
        return methods(actor)[name]
    except KeyError:
        known = ", ".join(methods(actor))
        raise AttributeError(f"{actor.__name__} has no callable method {name!r}; it has: {known}") from None

"""The wrapper of every hook: loads it, calls it with a deadline, checks its value, and tells its faults.

A fault of the user's code never ends the process that calls it: whatever the function does short of ending the
process itself (raising, `sys.exit()`, returning a wrong value, not returning in time) becomes a `HookError`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from verst.runtime.hooks.dotted import DottedPathError, load_function
from verst.runtime.hooks.errors import HookError, LabelError
from verst.runtime.hooks.frames import shown, told, user_frames, where

log = logging.getLogger(__name__)

_MOST_TRACEBACKS = 20  # in the log, of each hook; the message of every failure goes on to the caller


class Hook:
    """A user's function, loaded from its dotted path.

    Raises HookError if the path names no function or its module cannot be imported.
    """

    def __init__(
        self,
        what: str,
        path: str,
        *,
        timeout_s: float | None = None,
        in_thread: bool = True,
        passes: type[BaseException] | None = None,
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        """`what` names the hook in messages: "group filter".

        Args:
            what: what the hook is for.
            path: its dotted path.
            timeout_s: the deadline of a call; None: the caller has one.
            in_thread: call a plain function in a thread, so that the event loop goes on.
            passes: errors that are not the hook's fault (the engine's, in a generate function); they pass unchanged.
            keywords: keyword arguments of every call.
        """
        self.what = what
        self.path = path
        self._timeout_s = timeout_s
        self._in_thread = in_thread
        self._passes = passes
        self._told = 0
        try:
            self.function = load_function(path, what)
        except DottedPathError as error:
            raise HookError(str(error), kind="load") from error
        except BaseException as error:  # a module may do anything while it is imported
            if isinstance(error, KeyboardInterrupt):
                raise
            message = f"{what} {path!r}: importing it failed: {told(error)}"
            raise HookError(message, user_frames(error), "load") from error
        self._call = functools.partial(self.function, **keywords) if keywords else self.function

    @property
    def is_async(self) -> bool:
        """Whether the function is declared `async`."""
        return is_async(self.function)

    async def __call__[T](self, place: str, *arguments: Any, check: Callable[[Any], T]) -> T:
        """Calls the function and returns the checked value. `place` says for what: "group 3".

        Raises HookError with hook, place and fault.
        """
        deadline = asyncio.timeout(self._timeout_s)
        try:
            async with deadline:
                value = await self._value(arguments)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a user's function may raise anything
            if deadline.expired() and isinstance(error, TimeoutError):
                waited = where(error.__cause__)  # a cancelled coroutine says where it was
                raise self.fault(
                    place, f"no value after {self._timeout_s:g} s{waited}", kind="late"
                ) from None
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            if (passing := self._passing(error)) is not None:
                raise passing from None
            raise self._raised(place, error) from error
        return self._checked(place, value, check)

    def call_now[T](self, place: str, *arguments: Any, check: Callable[[Any], T]) -> T:
        """Calls a plain function in this thread, where nothing can be awaited and a hang is for others to notice."""
        value, error = _outcome(self._call, arguments)
        if error is not None:
            raise self._raised(place, error) from error
        if inspect.isawaitable(value):
            _drop(value)
            raise self.fault(place, "is async: here it must be a plain function")
        return self._checked(place, value, check)

    def fault(self, place: str, problem: str, frames: str = "", kind: Any = "raised") -> HookError:
        """The error that says what is wrong with this hook at `place`."""
        return HookError(f"{self.what} {self.path!r}, {place}: {problem}", frames, kind)

    async def _value(self, arguments: tuple[Any, ...]) -> Any:
        if self.is_async:
            return await self._call(*arguments)
        if self._in_thread:
            value, error = await asyncio.to_thread(_outcome, self._call, arguments)
        else:
            value, error = _outcome(self._call, arguments)
        if error is not None:
            raise error if not isinstance(error, StopIteration) else _Stopped(error)
        return await value if inspect.isawaitable(value) else value

    def _checked[T](self, place: str, value: Any, check: Callable[[Any], T]) -> T:
        try:
            return check(value)
        except ValueError as error:
            raise self.fault(place, str(error)) from None
        except Exception as error:  # the value may be of a class that raises when it is looked at
            problem = f"returned {shown(value)}, which cannot be looked at: it {told(error)}"
            raise self.fault(place, problem, user_frames(error)) from error

    def _raised(self, place: str, error: BaseException) -> HookError:
        if isinstance(error, _Stopped):
            error = error.stop
        fault = self.fault(
            place, told(error), user_frames(error), "label" if isinstance(error, LabelError) else "raised"
        )
        self._told += 1
        if self._told <= _MOST_TRACEBACKS:
            log.error("%s\n%s", fault, fault.frames)
        return fault

    def _passing(self, error: BaseException) -> BaseException | None:
        """The error that is not the hook's own, also out of the group that a `TaskGroup` of the hook makes of it."""
        if self._passes is None:
            return None
        if isinstance(error, BaseExceptionGroup):
            theirs, own = error.split(self._passes)
            return self._passing(theirs.exceptions[0]) if theirs is not None and own is None else None
        return error if isinstance(error, self._passes) else None


def is_async(function: Any) -> bool:
    """Whether a function, or an object that can be called, is declared `async`."""
    call = getattr(function, "__call__", None)  # noqa: B004  # an object's method may be async
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class _Stopped(Exception):
    """Carries a StopIteration, which Python does not let out of a coroutine."""

    def __init__(self, stop: StopIteration) -> None:
        self.stop = stop


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    """Calls a function, and returns its value or what it raised: a thread or a future would treat some specially."""
    try:
        return function(*arguments), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, error


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _drop(awaitable: Any) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()

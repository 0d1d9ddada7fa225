"""Actors on bare hosts: stateful objects in other processes, called through typed handles over ZeroMQ.

A process joins the run with `Member.join` (`member.py`), or with `MemberThread` (`main_thread.py`) if its
main thread does other work. It serves an `Actor` (`actor.py`) and calls others through `member.handle` and
`member.group` (`handle.py`). Calls fail with the exceptions in `errors.py`.

Below that, members find one another through files in the run folder (`directory.py` reads them,
`following.py` decides when) and exchange the messages of `wire.py` over one encrypted connection per pair:
`link.py` is the caller's end and `server.py` the other one. `streams.py` sends results one by one,
`shared_memory.py` passes large arrays within a node, and `security.py` admits only holders of the run's keys.
"""

from verst.runtime.actors.actor import Actor
from verst.runtime.actors.directory import MemberInfo
from verst.runtime.actors.errors import (
    ActorError,
    CallRefused,
    CallTimeout,
    MemberLost,
    RemoteError,
    StaleGeneration,
)
from verst.runtime.actors.handle import ActorGroup
from verst.runtime.actors.host_address import resolve_host
from verst.runtime.actors.main_thread import MainThread, MemberThread
from verst.runtime.actors.member import Member
from verst.runtime.actors.security import create_keys
from verst.runtime.actors.shared_memory import shared_array

__all__ = [
    "Actor",
    "ActorError",
    "ActorGroup",
    "CallRefused",
    "CallTimeout",
    "MainThread",
    "Member",
    "MemberInfo",
    "MemberLost",
    "MemberThread",
    "RemoteError",
    "StaleGeneration",
    "create_keys",
    "resolve_host",
    "shared_array",
]

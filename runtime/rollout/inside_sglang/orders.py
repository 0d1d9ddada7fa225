"""What a rollout worker asks of SGLang's scheduler beyond its own requests, and the answers.

They travel as JSON in the `load_format` and `message` of /update_weights_from_distributed.
"""

from __future__ import annotations

from typing import Any

import msgspec


class CompareOrder(msgspec.Struct, array_like=True, tag="verst_compare"):
    """Compare the bucket that is broadcast now with the parameters; do not load it."""

    first: bool
    last: bool


class LinkOrder(msgspec.Struct, array_like=True, tag="verst_link"):
    """Tell the trainer's ranks in this group which blocks each rank holds, and plan transfers with them."""

    trainer_ranks: int
    bucket_bytes: int
    rotation: int
    timeout_s: float
    shared: bool = False  # through memory that both map
    double_buffer: bool = False


class ReceiveOrder(msgspec.Struct, array_like=True, tag="verst_receive"):
    """Receive a whole version as planned."""

    version: int
    timeout_s: float


class StageOrder(msgspec.Struct, array_like=True, tag="verst_stage"):
    """Begin to receive a whole version into the second buffer, while generation goes on.

    When it is over, well or not, the engine's first rank makes the file `done`. A ReceiveOrder follows.
    """

    version: int
    timeout_s: float
    done: str


class LoadOrder(msgspec.Struct, array_like=True, tag="verst_load"):
    """Load a version that is published in a folder (`sync/versions/folder.py`)."""

    root: str
    version: int
    copy: str | None  # a file on this node that holds it already (`sync/versions/local_copy.py`)
    timeout_s: float


Order = CompareOrder | LinkOrder | ReceiveOrder | StageOrder | LoadOrder


class Positions(msgspec.Struct):
    """The answer to what completes a version: what each unfinished request already had."""

    previous: str  # the weight version until now
    tokens: dict[str, int]  # request id -> output tokens that older weights generated


class Arrived(Positions):
    """The answer to a ReceiveOrder; seconds, of the slowest rank."""

    transfer_s: float = 0.0
    load_s: float = 0.0


class Linked(msgspec.Struct):
    """The answer to a LinkOrder."""

    buckets: int
    slot_bytes: int  # of memory, on the rank with the most
    plan_s: float


def order_in(load_format: str | None) -> Order | None:
    """The order in a request's `load_format`; None when it is SGLang's own."""
    if load_format is None or not load_format.startswith('["verst_'):
        return None
    return msgspec.json.decode(load_format, type=Order)


def as_load_format(order: Order) -> str:
    """An order as a request carries it."""
    return msgspec.json.encode(order).decode()


def as_message(answer: Any) -> str:
    """An answer as SGLang passes it on."""
    return msgspec.json.encode(answer).decode()

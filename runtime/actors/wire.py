"""The messages between actors: an envelope and a body (encoded by `codec.py`), as ZeroMQ frames.

Small messages travel together. One frame holds all that were ready to leave (`outbox.py`):

```
frame 0   list of Packed (msgpack): envelopes with their bodies
```

A message with arrays, or with a body above `PACKED_BYTES`, travels alone:

```
frame 0   Envelope (msgpack): who sends what to whom, in which life of the run
frame 1   body (msgpack): arguments, result or Fault
frame 2…  one per array of the body: its own memory, or empty if the envelope names shared memory for it
```

A received message is untrusted until `read` and `read_body` have accepted it. Both raise `Malformed` for
anything that is not a message of this protocol, and no other exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from verst.runtime.actors import codec
from verst.runtime.actors.codec import Buffer
from verst.runtime.actors.shared_memory import LEAST_BYTES, Held, Reference, get, put

PROTOCOL = 3

MAX_FRAMES = 16_384
MAX_BYTES = 1 << 30  # of one message; ZeroMQ drops the connection at a single frame above it
MAX_ENVELOPE_BYTES = 2048
PACKED_BYTES = 4096  # a message with a larger body travels alone
MAX_PACKED = 64  # envelopes in a frame
MAX_BODY_BYTES = 32 << 20  # without arrays; decoded, a list of empty lists takes 70 times as many bytes
MAX_TIMEOUT_S = 30 * 86_400.0


class Malformed(ValueError):
    """Something that is not a message of this protocol. `reason` is a short word to count it under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


Text = Annotated[str, msgspec.Meta(max_length=300)]


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """The head of a message: its kind, its sender and its receiver."""

    protocol: int
    # For "item" and "more" see `streams.py`. "taken": the caller has mapped the shared memory of a reply or
    # an item.
    kind: Literal["call", "reply", "error", "cancel", "item", "more", "taken"]
    call: int  # rises with each call of a sender; a reply carries the number of its call
    generation: int  # the sender's
    sender: Text  # the sender's incarnation, unique for each life of a process
    sender_name: Text  # "trainer-3", for messages to people
    receiver: Text  # the receiver's incarnation; "" in replies
    method: Text = ""
    timeout_s: float = 0.0  # the time left for the call; relative, since clocks differ between hosts
    node: Text = ""  # the sender's `shared_memory.node_key`
    shared: tuple[Reference, ...] = ()  # where the bytes of the empty frames are


class Packed(msgspec.Struct, array_like=True, frozen=True):
    """One of the small messages in a frame. Each body is decoded by itself, so a bad one affects no other."""

    envelope: Envelope
    body: Annotated[bytes, msgspec.Meta(max_length=PACKED_BYTES)] = b""  # empty for "cancel" and "taken"


class Fault(msgspec.Struct, frozen=True):
    """The body of an "error": why a call has no result."""

    kind: Literal["raised", "refused", "stale", "not_here"]
    type: str
    message: str
    traceback: str = ""


_MAX_PACK_BYTES = MAX_PACKED * (MAX_ENVELOPE_BYTES + PACKED_BYTES)
_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_pack_decoder = msgspec.msgpack.Decoder(Annotated[list[Packed], msgspec.Meta(max_length=MAX_PACKED)])


def encode(body: Any) -> list[Buffer]:
    """Encodes a body as frames. Raises TypeError if it cannot be encoded, ValueError if it is too large."""
    frames = codec.encode(body)
    if len(frames) == 1 and len(frames[0]) <= PACKED_BYTES:
        return frames
    if len(frames) >= MAX_FRAMES:
        raise ValueError(f"{len(frames) - 1} arrays in one message: at most {MAX_FRAMES - 2}")
    size = sum(_nbytes(frame) for frame in frames)
    if size > MAX_BYTES:
        raise ValueError(f"a message of {size} bytes: at most {MAX_BYTES}")
    if _nbytes(frames[0]) > MAX_BODY_BYTES:
        raise ValueError(
            f"{_nbytes(frames[0])} bytes besides the arrays: at most {MAX_BODY_BYTES}; put large data into arrays"
        )
    return frames


def write(envelope: Envelope, body: Sequence[Buffer], held: Held | None = None) -> list[Buffer]:
    """Makes the frames of a message that travels alone.

    With `held`, for a receiver on this node, large arrays go through shared memory, which `held` keeps.
    """
    frames: list[Buffer] = [b"", *body]
    if held is not None and sum(_nbytes(frame) for frame in body[1:]) >= LEAST_BYTES:
        frames, shared = put(frames, held)
        envelope = msgspec.structs.replace(envelope, shared=shared)
    frames[0] = _encoder.encode(envelope)
    return frames


def pack(messages: Sequence[Packed]) -> bytes:
    """Encodes at most MAX_PACKED small messages as one frame."""
    return _encoder.encode(messages)


def read(frames: Sequence[Buffer]) -> list[tuple[Envelope, Sequence[Buffer]]]:
    """Splits received frames into messages, each with frames for `read_body`. Checks sizes and envelopes."""
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise Malformed("frames", f"{len(frames)} frames: 1 to {MAX_FRAMES} make a message")
    most = _MAX_PACK_BYTES if len(frames) == 1 else MAX_ENVELOPE_BYTES
    if _nbytes(frames[0]) > most:
        raise Malformed("envelope", f"envelopes of {_nbytes(frames[0])} bytes: at most {most}")
    alone = len(frames) > 1
    found: list[tuple[Envelope, Sequence[Buffer]]]
    try:
        if alone:
            found = [(_envelope_decoder.decode(frames[0]), frames)]
        else:
            found = [(packed.envelope, (b"", packed.body)) for packed in _pack_decoder.decode(frames[0])]
    except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
        raise Malformed("envelope", f"not an envelope: {error}") from error
    size = sum(_nbytes(frame) for frame in frames)
    for envelope, _ in found:
        _check(envelope, size)
    return found


def _check(envelope: Envelope, size: int) -> None:
    if envelope.shared:
        size += sum(max(reference.nbytes, 0) for reference in envelope.shared)
    if size > MAX_BYTES:
        raise Malformed("size", f"a message of more than {MAX_BYTES} bytes")
    if envelope.protocol != PROTOCOL:
        raise Malformed("protocol", f"protocol version {envelope.protocol}: this process has {PROTOCOL}")
    if not 0.0 <= envelope.timeout_s <= MAX_TIMEOUT_S:  # NaN is refused too
        raise Malformed("timeout", f"a timeout of {envelope.timeout_s} s: must be 0 to {MAX_TIMEOUT_S:g}")


def read_body(type_: Any, frames: Sequence[Buffer], shared: Sequence[Reference] = ()) -> Any:
    """Decodes a message's body into `type_`. Arrays are read-only views of the frames or of shared memory."""
    if len(frames) < 2:
        raise Malformed("body", "the body is missing")
    if _nbytes(frames[1]) > MAX_BODY_BYTES:
        raise Malformed("body", f"a body of {_nbytes(frames[1])} bytes: at most {MAX_BODY_BYTES}")
    try:
        return codec.decode(type_, (get(frames, shared) if shared else frames)[1:])
    except (ValueError, RecursionError) as error:
        raise Malformed("body", str(error)) from error


def _nbytes(frame: Buffer) -> int:
    return frame.nbytes if isinstance(frame, memoryview) else len(frame)

"""Decides who may call: each life of a run has its own CURVE keys, and ZAP admits only their holders.

A member's socket proves itself with the server key and admits only the client key. Another user of the
cluster cannot read the run's secret (in its folder, mode 0600) and so can neither call, nor read, nor inject
messages.

Each generation has its own keys, derived from the secret. A process that outlived its generation cannot even
connect, and leaked keys are worthless once the run has gone on to the next generation. No keys have to be
handed out for that: a process that joins a generation, like a rollout worker whose engine outlasts the
trainer, derives its keys then.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq
from zmq.utils import z85

from verst.runtime.run.folder import RunFolder, write_atomically

ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # fixed by ZeroMQ's RFC 27


class Keys(msgspec.Struct, frozen=True):
    """A generation's two CURVE key pairs. Each key is Z85 text of 40 characters."""

    server_public: str
    server_secret: str
    client_public: str
    client_secret: str

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Makes `socket` a server to which only holders of the keys can connect. Call it before bind."""
        socket.curve_server = True
        socket.curve_secretkey = self.server_secret.encode()
        socket.curve_publickey = self.server_public.encode()
        socket.zap_domain = b"verst"

    def unlock(self, socket: zmq.Socket[bytes]) -> None:
        """Gives `socket` the keys to connect to a guarded one. Call it before connect."""
        socket.curve_serverkey = self.server_public.encode()
        socket.curve_secretkey = self.client_secret.encode()
        socket.curve_publickey = self.client_public.encode()


class _Secret(msgspec.Struct, frozen=True):
    """The content of the key file. Without it nobody can join; all keys of the run are derived from it."""

    secret: str  # 32 bytes, hexadecimal

    def keys(self, generation: int) -> Keys:
        """Derives the keys of a generation, by BLAKE2b with the secret as its key."""
        pairs: list[str] = []
        for side in ("server", "client"):
            derived = hashlib.blake2b(
                f"{side} {generation}".encode(),
                key=bytes.fromhex(self.secret),
                digest_size=32,
                person=b"verst CURVE keys",
            )
            private = z85.encode(derived.digest())
            pairs += [zmq.curve_public(private).decode(), private.decode()]
        return Keys(*pairs)


def create_keys(folder: RunFolder) -> None:
    """Makes the secret behind the run's keys. Does nothing if the run has it already."""
    path = _path(folder)
    if path.exists():
        return
    folder.keys.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_atomically(temporary, msgspec.json.encode(_Secret(secrets.token_hex(32))))
    try:
        os.link(temporary, path)  # unlike rename, this fails if another process was first
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def read_keys(folder: RunFolder, generation: int | None = None) -> Keys:
    """Reads the keys of a generation (by default the present one).

    Raises FileNotFoundError if the run has none, PermissionError if other users may read them, and ValueError
    if the file holds something else, like a file of an earlier version of Verst.
    """
    path = _path(folder)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: the run has no keys; call create_keys(folder) before the run starts"
        ) from None
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}: others may read it; chmod it to 0600"
        )
    try:
        secret = msgspec.json.decode(path.read_bytes(), type=_Secret)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} holds no run's secret ({error}); start a new run") from error
    return secret.keys(folder.generation if generation is None else generation)


def _path(folder: RunFolder) -> Path:
    return folder.keys / "curve.json"


def answer_zap(frames: list[bytes], keys: Keys, count: Callable[[str], None]) -> list[bytes]:
    """Answers one ZAP request (RFC 27): 200 for CURVE with the run's client key, else 400."""
    version, request, _domain, _address, _identity, mechanism, *credentials = frames
    admitted = mechanism == b"CURVE" and credentials == [z85.decode(keys.client_public)]
    if not admitted:
        count("refused_key")
    code, text, user = (b"200", b"OK", b"member") if admitted else (b"400", b"not a member of this run", b"")
    return [version, request, code, text, user, b""]

"""Bad cables for a cluster's nodes: slow, lossy, clogged, or deaf in one direction. Kernels in small machines have no
netem, so a process takes each frame of the cable from one packet socket and puts it into another.

`python slow_links.py CABLE:PORT …` runs the process: between the host's end of a node's cable and a port of the bridge.
On stdin it reads what the cables are like from now on, a JSON line for each change, and answers "set"; at the end of
stdin it says how many frames went through, were held and were dropped.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

# linux/if_packet.h. With the header of virtio-net a frame keeps what its sender left to the hardware: its checksum, and
# being cut to the size of a packet.
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ALL_PROTOCOLS = 3  # bind() itself puts it into the order of bytes of the network
LARGEST_FRAME = 70_000
HELD_AT_MOST = 2000  # frames of a cable and direction: a switch has no more room either
TO_NODE, FROM_NODE = "to_node", "from_node"


class Quality(NamedTuple):
    """What a cable is like, in one direction or both."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0  # of the frames
    stalled_s: float = 0.0  # nothing comes through for so long, and then all at once
    directions: tuple[str, ...] = (TO_NODE, FROM_NODE)


class SlowLinks:
    """The process of a cluster, from the outside."""

    def __init__(self, pairs: dict[str, tuple[str, str]], env: dict[str, str]) -> None:
        """`pairs`: by node, its cable's end on the host and the port of the bridge. `env` marks it as the cluster's."""
        cables = [f"{cable}:{port}" for cable, port in pairs.values()]
        self._cable = {node: cable for node, (cable, _) in pairs.items()}
        self.frames: dict[str, int] = {}  # at the end: how many passed, were held before, were dropped
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__)), *cables],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the process between cables and bridge did not start; see its message above")

    def set(self, node: str, quality: Quality) -> None:
        """From now on; `Quality()` is a good cable."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([self._cable[node], quality._asdict()]) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "set\n":
            raise RuntimeError("the process between cables and bridge has failed; see its message above")

    def stop(self) -> None:
        """Ends the process. The nodes are cut off from now on."""
        said, _ = self._process.communicate(timeout=30)
        self.frames = json.loads(said)


class Direction:
    """Frames from one socket to another."""

    def __init__(self, name: str, source: socket.socket, sink: socket.socket, did: Counter[str]) -> None:
        self.name, self.source, self.sink, self._did = name, source, sink, did
        self.quality = Quality()
        self.free_at = 0.0  # a stall's end
        self._held: list[tuple[float, int, bytes]] = []
        self._numbers = itertools.count()

    def take(self, now: float) -> None:
        """Frames that have come: passed on, held or dropped."""
        for _ in range(64):
            try:
                frame = self.source.recv(LARGEST_FRAME)
            except (BlockingIOError, OSError):  # none any more; or the cable is pulled, which is told once
                return
            quality = self.quality
            if random.random() < quality.loss or len(self._held) >= HELD_AT_MOST:
                self._did["dropped"] += 1
                continue
            due = max(now + quality.delay_s + random.random() * quality.jitter_s, self.free_at)
            if due > now or self._held:
                self._did["held"] += 1
                heapq.heappush(self._held, (due, next(self._numbers), frame))
            else:
                self._put(frame)

    def release(self, now: float) -> float:
        """Puts what is due; when the next one is."""
        while self._held and self._held[0][0] <= now:
            self._put(heapq.heappop(self._held)[2])
        return self._held[0][0] if self._held else float("inf")

    def _put(self, frame: bytes) -> None:
        try:
            self.sink.send(frame)
            self._did["passed"] += 1
        except OSError:  # the cable is pulled, or the queue behind it is full
            self._did["dropped"] += 1


def packet_socket(interface: str) -> socket.socket:
    """All frames that come in on an interface, with virtio-net's header."""
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    one.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    one.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    one.bind((interface, ALL_PROTOCOLS))
    one.setblocking(False)
    return one


def change(cables: dict[str, list[Direction]], line: bytes) -> None:
    """What a line from stdin says."""
    cable, fields = json.loads(line)
    quality = Quality(**fields)
    for direction in cables[cable]:
        if direction.name in quality.directions:
            direction.quality = quality
            direction.free_at = time.monotonic() + quality.stalled_s


def main(pairs: list[str]) -> None:
    did: Counter[str] = Counter()
    selector = selectors.DefaultSelector()
    cables: dict[str, list[Direction]] = {}
    for cable, port in (pair.split(":") for pair in pairs):
        ours, theirs = packet_socket(cable), packet_socket(port)
        cables[cable] = [Direction(FROM_NODE, ours, theirs, did), Direction(TO_NODE, theirs, ours, did)]
    directions = [direction for both in cables.values() for direction in both]
    for direction in directions:
        selector.register(direction.source, selectors.EVENT_READ, direction)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    print("ready", flush=True)
    told = b""
    due = float("inf")
    while True:
        ready: list[tuple[Any, int]] = selector.select(max(0.0, min(due - time.monotonic(), 5.0)))
        now = time.monotonic()
        for key, _ in ready:
            if key.data is not None:
                key.data.take(now)
            elif more := os.read(key.fd, 1 << 16):
                *lines, told = (told + more).split(b"\n")
                for line in lines:
                    change(cables, line)
                    print("set", flush=True)
            else:
                print(json.dumps(did))
                return
        due = min(direction.release(time.monotonic()) for direction in directions)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])

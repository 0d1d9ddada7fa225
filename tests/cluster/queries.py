"""Reads what Slurm's commands print."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

QUEUE_FORMAT = "%i|%T|%r|%P|%u|%N|%j"


@dataclass(frozen=True)
class QueueLine:
    """A line of squeue. The id of an array's task is like 12_3; the state is spelled out, like PENDING."""

    id: str
    state: str
    reason: str
    partition: str
    user: str
    nodes: str
    name: str


def parse_queue(output: str) -> list[QueueLine]:
    return [QueueLine(*line.split("|", 6)) for line in output.splitlines() if line]


def parse_jobs(output: str) -> list[dict[str, str]]:
    """`scontrol show job -o`: KEY=VALUE on one line for each job; a value may hold spaces and further ="""
    return [
        {
            match[1]: match[2].strip()
            for match in re.finditer(r"(?:^| )([A-Z][\w/:]*)=(.*?)(?= [A-Z][\w/:]*=|$)", line)
        }
        for line in output.splitlines()
        if line.strip()
    ]


def program(pid: int) -> str | None:
    """The name of a process's program, or None if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


def listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError:
        return False
    return True

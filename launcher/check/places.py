"""Checks the places that a run writes to and listens on: folders that cannot be written, ports that are taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from verst.launcher.plan.machine import Machine
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.run.folder import write_fault


def place_faults(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    """The faults of places on this machine. Ports are tried only for a run on this machine (`machine`)."""
    folders = {"runs_dir": recipe.runs_dir, "weights.folder": recipe.weights.folder}
    prometheus = recipe.metrics.prometheus
    if machine is not None:
        folders["weights.local_folder"] = recipe.weights.local_folder
        if prometheus is not None and prometheus.textfile:
            folders["metrics.prometheus.textfile"] = str(
                Path(prometheus.textfile).expanduser().absolute().parent
            )
    for key, written in folders.items():
        if written is not None and (fault := unwritable(Path(written))):
            yield Fault(key, f"is {written!r}, which cannot be written: {fault}")
    if machine is not None and prometheus is not None and prometheus.port and is_taken(prometheus.port):
        yield Fault(
            "metrics.prometheus.port",
            f"is {prometheus.port}, on which another process of this machine listens",
        )


def unwritable(folder: Path) -> str | None:
    """Why a folder cannot be written or made, None if it can. Tries in the nearest folder that exists."""
    folder = folder.expanduser().absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return f"{place} is not a folder" if not place.is_dir() else write_fault(place)


def is_taken(port: int) -> bool:
    """Whether a process of this machine listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False

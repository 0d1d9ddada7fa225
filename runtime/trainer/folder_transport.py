"""Versions through a folder: the source rank writes what all ranks gather, each engine loads it by itself.

The transports `disk` and `delta`. Engines generate while a version is written and while they read it; each pauses
for loading alone. An engine that joins later loads the version that is there: the trainer does nothing for it,
unless an engine could not load and the version proves damaged. It is then written anew.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from verst.runtime.actors import RemoteError
from verst.runtime.trainer.source_round import SourceRound
from verst.runtime.weight_round import FolderVersion
from verst.sync.config import WeightsConfig
from verst.sync.disk_reader import open_version
from verst.sync.engine_format import Conversion, EngineFormat
from verst.sync.gather import SOURCE, Gather
from verst.sync.version_sender import VersionSender

log = logging.getLogger(__name__)
_LIFE = "attempt-"


def versions_root(config: WeightsConfig, run: Path, generation: int) -> Path:
    """Where this life of the run keeps its versions: another life counts the same ones with other weights."""
    if config.folder is None:
        return run / "weights" / f"{_LIFE}{generation}"
    mark = hashlib.sha256(str(run).encode()).hexdigest()[:8]  # runs of one name may share the folder
    return Path(config.folder) / f"{run.name}-{mark}" / f"{_LIFE}{generation}"


class FolderTransport:
    """On every trainer rank; the files are the source's."""

    def __init__(
        self, gather: Gather, format: EngineFormat, config: WeightsConfig, root: Path, companions: Path
    ) -> None:
        """`companions` is the engines' model folder, whose configuration and tokenizer a whole version gets."""
        self._gather, self._format, self._config = gather, format, config
        self._root, self._companions = root, companions
        self._published: int | None = None
        self._doubted = False  # the source's: an engine could not load what was published
        self._anew = 0  # how often versions were found damaged, and written in a new folder
        self._sender = self._start(root) if gather.rank == SOURCE else None

    def publish(self, version: int, source: SourceRound | None) -> None:
        """Writes a version, unless it is there. Collective. Raises OSError or ValueError on the source if it cannot."""
        damaged = self._agree(source is not None and self._doubted and self._is_damaged())
        self._doubted = False
        if damaged:
            self._anew += 1
            if self._sender is not None:
                self._sender = self._start(self._root.with_name(f"{self._root.name}.{self._anew}"))
        elif version == self._published:
            return
        self._published = version
        if self._sender is not None and source is not None:
            self._write(self._sender, version, source)
        else:
            for _ in self._gather.buckets():
                pass

    def load(self, source: SourceRound) -> None:
        """Every engine of the round loads the version. The source's part alone."""
        assert self._sender is not None
        request = source.request
        version = FolderVersion(
            root=str(self._sender.root),
            version=request.version,
            copy_in=(self._config.local_folder or "") if self._config.transport == "delta" else None,
            pause=request.pause,
            go_on=not request.check,
            timeout_s=source.remaining(),
        )
        with source.timed("load"):
            answers = {e: source.call(e, lambda worker: worker.load_version(version)) for e in source.live}
            for engine, answer in answers.items():
                loaded = source.attempt(engine, partial(answer.result, source.remaining()))
                if loaded is not None:
                    source.taken[engine] = loaded
                elif answer.done() and isinstance(answer.exception(), RemoteError):
                    self._doubted = True  # it could not load what was published, and lives to say so

    def _start(self, root: Path) -> VersionSender:
        """Of a folder in which nothing is yet; others of this run are nobody's any more."""
        for other in root.parent.glob(f"{_LIFE}*"):
            if other.name != root.name:
                shutil.rmtree(other, ignore_errors=True)
        deltas = self._config.transport == "delta"
        return VersionSender(
            root,
            keep=self._config.keep_versions,
            full_every=self._config.full_every if deltas else 1,
            format=self._format.quantization,
            companions=self._companions if self._companions.is_dir() and not deltas else None,
        )

    def _is_damaged(self) -> bool:
        """Whether engines that join find the newest version unreadable; it, or one that it starts from."""
        if self._sender is None or self._published is None:
            return False
        try:
            with open_version(self._sender.root, self._published) as reader:
                reader.verify()
        except (OSError, ValueError) as error:
            log.warning("weights are written anew, to another folder: %s", error)
            return True
        return False

    def _agree(self, damaged: bool) -> bool:
        """What the source found, on every rank."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return damaged
        box = [damaged]
        dist.broadcast_object_list(box, src=SOURCE)
        return box[0]

    def _write(self, sender: VersionSender, version: int, source: SourceRound) -> None:
        conversion = self._format.start()
        failure = _refusal(partial(sender.begin, version))
        began = time.monotonic()
        for names, tensors in self._gather.buckets():
            source.seconds["gather"] += time.monotonic() - began
            if failure is None:  # else the other ranks still send what nobody takes
                failure = _refusal(partial(_add, sender, conversion, source, names, tensors or []))
            began = time.monotonic()
        if failure is not None:
            raise failure
        with source.timed("write"):
            source.bytes += sender.finish(version)


def _add(
    sender: VersionSender,
    conversion: Conversion,
    source: SourceRound,
    names: list[str],
    tensors: list[torch.Tensor],
) -> None:
    with source.timed("convert"):
        names, tensors = conversion.feed(names, tensors)
    with source.timed("write"):
        sender.add(names, tensors)


def _refusal(act: Callable[[], None]) -> Exception | None:
    """What a disk or a format has against it."""
    try:
        act()
    except (OSError, ValueError) as error:
        return error
    return None

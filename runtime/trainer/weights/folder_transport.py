"""Sends versions through a folder: each trainer rank writes the tensors that it owns, and each engine loads
them all.

These are the transports `disk` and `delta`. Engines generate while a version is written and while they read
it. Each engine pauses only to load it. An engine that joins later loads the newest version, and the trainer
does nothing for it. Only if an engine could not load a version, and the version is damaged, does the trainer
write it again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from verst.runtime.actors import RemoteError
from verst.runtime.messages.weight_round import FolderVersion
from verst.runtime.trainer.weights.source_round import SourceRound, timed
from verst.sync.config import WeightsConfig
from verst.sync.links.engine_format import Conversion, EngineFormat
from verst.sync.links.gather import SOURCE
from verst.sync.links.outcomes import attempt, of_all
from verst.sync.links.whole_share import WholeShare
from verst.sync.versions.reader import open_version
from verst.sync.versions.sender import VersionSender

log = logging.getLogger(__name__)
_LIFE = "life-"
_Tensors = tuple[list[str], list[torch.Tensor]]


def versions_root(config: WeightsConfig, run: Path, generation: int) -> Path:
    """Returns the folder for the versions of this life of the run.

    Another life has the same version numbers for other weights.
    """
    if config.folder is None:
        return run / "weights" / f"{_LIFE}{generation}"
    mark = hashlib.sha256(str(run).encode()).hexdigest()[:8]  # runs of the same name may share the folder
    return Path(config.folder) / f"{run.name}-{mark}" / f"{_LIFE}{generation}"


class FolderTransport:
    """One on every trainer rank.

    The source decides what is written, and publishes it when all ranks have written.
    """

    def __init__(
        self, share: WholeShare, format: EngineFormat, config: WeightsConfig, root: Path, companions: Path
    ) -> None:
        """`companions` is the engines' model folder. A whole version gets its configuration and tokenizer."""
        self._share, self._format, self._config = share, format, config
        self._root, self._companions = root, companions
        self._published: int | None = None
        self._doubted = False  # on the source: an engine could not load the published version
        self._anew = 0  # how many damaged versions were written again, to a new folder
        self._sender = self._start(root)

    def publish(self, version: int, source: SourceRound | None) -> None:
        """Writes a version, unless it is already there. Collective over the world.

        When a rank cannot write, raises OSError or ValueError on all ranks, with the name of that rank.
        """
        damaged = self._agree(source is not None and self._doubted and self._is_damaged())
        self._doubted = False
        if damaged:
            self._anew += 1
            self._sender = self._start(self._root.with_name(f"{self._root.name}.{self._anew}"))
        elif version == self._published:
            return
        self._published = version
        base = self._agree(self._sender.next_base() if source is not None else None)
        mine = self._write(version, base, source)
        with timed(source, "write"):  # until the last rank has written
            written = of_all(mine, self._share.rank, self._share.world, "write weights")
            if source is not None:
                source.bytes += sum(written)
                self._sender.publish(version)

    def load(self, source: SourceRound) -> None:
        """Lets every engine of the round load the version. Only the source calls this."""
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
                    self._doubted = True  # the worker lives, but could not load the version

    def _start(self, root: Path) -> VersionSender:
        """Creates the sender for an empty folder, and removes this run's unused other folders."""
        if self._share.rank == SOURCE:
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
            writer=self._share.rank,
            writers=self._share.world,
        )

    def _is_damaged(self) -> bool:
        """Whether engines that join could not read the newest version, or a version that it builds on."""
        if self._published is None:
            return False
        try:
            with open_version(self._sender.root, self._published) as reader:
                reader.verify()
        except (OSError, ValueError) as error:
            log.warning("weights are written again, to another folder: %s", error)
            return True
        return False

    def _agree(self, decided: Any) -> Any:
        """Returns the source's decision on every rank."""
        if self._share.world == 1:
            return decided
        box = [decided]
        dist.broadcast_object_list(box, src=SOURCE)
        return box[0]

    def _write(self, version: int, base: int | None, source: SourceRound | None) -> int | Exception:
        """Writes this rank's tensors; returns the number of bytes, or the error."""
        failure = attempt(partial(self._sender.begin, version, base))
        conversion = self._format.start()
        buckets = self._share.buckets()
        while bucket := self._next(buckets, source):
            if failure is None:  # after a failure, the other ranks still need this rank's blocks
                failure = attempt(partial(self._add, conversion, *bucket, source))
        with timed(source, "write"):
            return attempt(partial(self._sender.seal, version)) if failure is None else failure

    def _next(self, buckets: Iterator[_Tensors], source: SourceRound | None) -> _Tensors | None:
        with timed(source, "gather"):
            return next(buckets, None)

    def _add(
        self,
        conversion: Conversion,
        names: list[str],
        tensors: list[torch.Tensor],
        source: SourceRound | None,
    ) -> None:
        with timed(source, "convert"):
            names, tensors = conversion.feed(names, tensors)
        with timed(source, "write"):
            self._sender.add(names, tensors)

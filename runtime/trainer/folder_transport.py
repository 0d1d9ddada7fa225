"""Versions through a folder: the source rank writes what all ranks gather, each engine loads it by itself.

The transports `disk` and `delta`. Engines generate while a version is written and while they read it; each pauses
for loading alone. An engine that joins later loads the version that is there: the trainer does nothing for it.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from functools import partial
from pathlib import Path

from verst.runtime.trainer.source_round import SourceRound
from verst.runtime.weight_round import FolderVersion
from verst.sync.config import WeightsConfig
from verst.sync.engine_format import EngineFormat
from verst.sync.gather import Gather
from verst.sync.version_sender import VersionSender

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
        self,
        gather: Gather,
        format: EngineFormat,
        config: WeightsConfig,
        root: Path,
        companions: Path,
        is_source: bool,
    ) -> None:
        """`companions` is the engines' model folder, whose configuration and tokenizer a whole version gets."""
        self._gather, self._format, self._config, self._root = gather, format, config, root
        self._published: int | None = None
        self._sender = None
        if is_source:
            _remove_earlier_lives(root)
            self._sender = VersionSender(
                root,
                keep=config.keep_versions,
                full_every=config.full_every if config.transport == "delta" else 1,
                format=format.quantization,
                companions=companions if companions.is_dir() and config.transport == "disk" else None,
            )

    def publish(self, version: int, source: SourceRound | None) -> None:
        """Writes a version, unless it is there. Collective. Raises OSError on the source when it cannot."""
        if version == self._published:
            return
        self._published = version
        if self._sender is None or source is None:
            for _ in self._gather.buckets():
                pass
            return
        self._write(self._sender, version, source)

    def load(self, source: SourceRound) -> None:
        """Every engine of the round loads the version. The source's part alone."""
        request = source.request
        version = FolderVersion(
            root=str(self._root),
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
                    source.loads[engine] = loaded

    def _write(self, sender: VersionSender, version: int, source: SourceRound) -> None:
        failure: Exception | None = None
        conversion = self._format.start()
        try:
            sender.begin(version)
        except (OSError, ValueError) as error:
            failure = error
        began = time.monotonic()
        for names, tensors in self._gather.buckets():
            source.seconds["gather"] += time.monotonic() - began
            assert tensors is not None
            if failure is None:  # else the other ranks still send what nobody takes
                try:
                    with source.timed("convert"):
                        names, tensors = conversion.feed(names, tensors)
                    with source.timed("write"):
                        sender.add(names, tensors)
                except (OSError, ValueError) as error:
                    failure = error
            began = time.monotonic()
        if failure is not None:
            raise failure
        with source.timed("write"):
            source.bytes += sender.finish(version)


def _remove_earlier_lives(root: Path) -> None:
    """Whoever still reads from them works for a life that is over."""
    for other in root.parent.glob(f"{_LIFE}*"):
        if other.name != root.name:
            shutil.rmtree(other, ignore_errors=True)

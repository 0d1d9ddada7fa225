"""Saves the run: checkpoints, and the Hugging Face export at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from verst.runtime.controller.curricula import Curricula
from verst.runtime.controller.happening_hooks import HappeningHooks
from verst.runtime.controller.reporting.measure import StepRecord
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.loop_state import LoopState
from verst.runtime.controller.trainers import Trainers
from verst.runtime.hooks.happenings import CheckpointSaved
from verst.runtime.run.folder import RunFolder


class Saving:
    """Carries out `SaveCheckpoint` and `Export`."""

    def __init__(
        self,
        state: LoopState,
        trainers: Trainers,
        record: StepRecord,
        folder: RunFolder,
        put: Callable[[ev.Event], None],
        hooks: HappeningHooks,
        curricula: Curricula,
        *,
        asynchronous: bool,
    ) -> None:
        """`asynchronous`: the trainer goes on while its checkpoint is being written."""
        self._state = state
        self._trainers = trainers
        self._record = record
        self._folder = folder
        self._put = put
        self._hooks = hooks
        self._curricula = curricula
        self._asynchronous = asynchronous

    async def save(self, version: int) -> ev.Saved:
        """Writes a checkpoint. Emits `SaveStarted` as soon as the trainer may go on."""
        path = self._folder.checkpoints / f"step-{version:06d}"
        began = time.monotonic()
        state = msgspec.structs.replace(self._state.saved_state(), curricula=self._curricula.state())
        saved = msgspec.msgpack.encode(state)
        with self._record.busy("checkpoint", version):
            await self._trainers("save", str(path), version, saved)
        self._put(ev.SaveStarted(version))
        if self._asynchronous:
            while not await self._trainers("saved", False):  # noqa: ASYNC110 (files in another process)
                await asyncio.sleep(1)
        self._folder.metric(kind="checkpoint", version=version, seconds=time.monotonic() - began)
        self._folder.event("checkpoint", message=f"checkpoint {path.name} is complete", path=str(path))
        saved_here = CheckpointSaved(version=version, path=path)
        await self._hooks.tell("checkpoint_saved", f"checkpoint {path.name}", saved_here)
        return ev.Saved(version)

    async def export(self) -> ev.Exported:
        """Writes the export."""
        began = time.monotonic()
        await self._trainers("export", str(self._folder.export))
        self._folder.event(
            "export",
            message="Hugging Face export is complete",
            path=str(self._folder.export),
            seconds=time.monotonic() - began,
        )
        return ev.Exported()

    async def wait(self) -> None:
        """Waits for a checkpoint that is still being written. Raises ActorError if it failed."""
        await self._trainers("saved", True)

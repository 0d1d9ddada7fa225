"""Weight rounds: the trainer sends its current weights to the engines that do not have them."""

from __future__ import annotations

from verst.runtime.actors import Member
from verst.runtime.controller.background import Background
from verst.runtime.controller.engine_calls import abandon
from verst.runtime.controller.happening_hooks import HappeningHooks
from verst.runtime.controller.reporting.measure import StepRecord
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.trainers import Trainers
from verst.runtime.hooks.happenings import WeightsSynced
from verst.runtime.messages.weight_round import RoundReport, WeightRound
from verst.runtime.run.folder import RunFolder
from verst.sync.config import WeightsConfig


class WeightRounds:
    """Carries out `SyncWeights`."""

    def __init__(
        self,
        config: WeightsConfig,
        member: Member,
        trainers: Trainers,
        record: StepRecord,
        folder: RunFolder,
        background: Background,
        hooks: HappeningHooks,
    ) -> None:
        self._config = config
        self._member = member
        self._trainers = trainers
        self._record = record
        self._folder = folder
        self._background = background
        self._hooks = hooks

    async def sync(self, version: int, engines: tuple[int, ...]) -> ev.Synced:
        """Runs one round. An engine that misses the weights is told to end."""
        request = WeightRound(
            version=version,
            engines=list(engines),
            pause=self._config.pause,
            check=self._config.check,
            deadline_s=self._config.timeout_s,
        )
        with self._record.busy("weight_sync", version, engines=len(engines)):
            report: RoundReport = await self._trainers("sync_weights", request)
        self._record.synced(report)
        self._folder.metric(
            kind="sync",
            version=version,
            engines=report.updated,
            bytes=report.bytes,
            checked_tensors=report.checked_tensors,
            seconds=report.seconds,
            taken=report.longest(),
            links=report.links(),
        )
        for engine, reason in report.failed.items():
            self._folder.event(
                "engine_left_out", message=f"engine {engine} missed weights {version}: {reason}"
            )
            self._background.start(abandon(self._member, engine, reason), f"abandoning engine {engine}")
        synced = WeightsSynced(
            version=version, engines=report.updated, failed=report.failed, seconds=report.seconds
        )
        await self._hooks.tell("weights_synced", f"weights {version}", synced)
        return ev.Synced(version, tuple(report.updated), tuple(report.failed.items()))

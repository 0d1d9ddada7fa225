"""The process of a trainer rank: a `Trainer` inside the actor that the controller calls.

Torch and Megatron run in the main thread, one call after another. The actor loop has its own thread, so a
long kernel never delays a heartbeat or an answer.
"""

from __future__ import annotations

import logging
import os
import socket
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from verst.runtime.actors import MainThread, Member, MemberThread
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.hooks.config import HooksConfig
from verst.runtime.messages.apis import TrainerApi, TrainerInfo
from verst.runtime.messages.jobs import Hold, HoldReport
from verst.runtime.messages.model_config import EngineModel, ModelConfig
from verst.runtime.messages.step_plan import SampleScore, StepPlan, StepReport
from verst.runtime.messages.weight_round import RoundReport, WeightRound
from verst.runtime.metrics.trace import Tracer
from verst.runtime.node.config import PlacementConfig
from verst.runtime.node.member_process import MemberProcess
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan
from verst.runtime.trainer.checkpoint.checkpoint import Checkpointer
from verst.runtime.trainer.config import CheckpointConfig, TrainerConfig
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.fetch import Fetched, SampleFetcher
from verst.runtime.trainer.trainer import Trainer
from verst.runtime.trainer.weights.folder_transport import versions_root
from verst.runtime.trainer.weights.weight_sync import WeightSync
from verst.sync.config import WeightsConfig
from verst.sync.wire.groups import NCCL_ENVIRONMENT

log = logging.getLogger(__name__)
_RENDEZVOUS_S = 300.0


class TrainerRank(TrainerApi):
    """Runs every call in the main thread and answers with its result."""

    def __init__(
        self,
        folder: RunFolder,
        rank: int,
        world_size: int,
        main: MainThread,
        rendezvous: dist.TCPStore | None,
        trace: Tracer,
    ) -> None:
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._main = main
        self._rendezvous = rendezvous
        self.thread: MemberThread  # started before the main thread takes its first call
        self._trace = trace
        self._trainer: Trainer
        self._samples: SampleFetcher
        self._checkpointer: Checkpointer
        self._weights: WeightSync
        self._scored: Fetched | None = None  # the samples of the step that is scored and not trained yet

    async def setup(self, checkpoint: str | None) -> TrainerInfo:
        return await self._main.run(lambda: self._setup(checkpoint))

    def _setup(self, checkpoint: str | None) -> TrainerInfo:
        member = self.thread.member
        store = self._rendezvous or _connect(member)
        model = self._folder.section("model", ModelConfig)
        config = self._folder.section("trainer", TrainerConfig)
        algorithm = self._folder.section("algorithm", AlgorithmConfig)
        cuda = torch.cuda.is_available()
        parallel = Parallel(
            self._rank,
            self._world_size,
            store,
            backend="nccl" if cuda else "gloo",
            timeout_s=config.step_timeout_s,
            local_rank=0,  # the node agent makes only one device visible to each rank
        )
        self._trainer = Trainer(
            model,
            config,
            algorithm,
            parallel,
            algorithm.updates,
            self._trace,
            self._folder.section("hooks", HooksConfig),
        )
        self._samples = SampleFetcher(parallel, member, self._trainer.replayed)
        self._checkpointer = Checkpointer(self._trainer, self._folder.section("checkpoint", CheckpointConfig))
        weights = self._weights_config()
        self._weights = WeightSync(
            self._trainer,
            member,
            weights,
            model.path,
            self._folder.section("rollout", EngineModel).model_path or model.path,
            getattr(torch, model.dtype),
            self._trace,
            versions_root(weights, self._folder.root, member.info.generation),
        )
        version = self._checkpointer.load(Path(checkpoint)) if checkpoint else 0
        return TrainerInfo(
            rank=self._rank,
            dp_rank=parallel.dp_rank,
            dp_size=parallel.dp_size,
            pad_multiple=self._trainer.model.pad_multiple,
            microbatch_multiple=self._trainer.model.microbatch_multiple,
            parameters=self._trainer.model.parameter_count,
            version=version,
        )

    def _weights_config(self) -> WeightsConfig:
        """The `weights` section, with the backend for this layout.

        In the colocated layout `auto` becomes `ipc`, because NCCL refuses two ranks on one GPU.
        """
        weights = self._folder.section("weights", WeightsConfig)
        colocated = self._folder.section("placement", PlacementConfig).layout == "colocated"
        return (
            weights.model_copy(update={"backend": "ipc"})
            if colocated and weights.backend == "auto"
            else weights
        )

    async def score(self, plan: StepPlan) -> list[SampleScore]:
        return await self._main.run(lambda: self._score(plan))

    def _score(self, plan: StepPlan) -> list[SampleScore]:
        self._scored = self._fetch(plan)
        samples, routing, selected, _ = self._scored
        return self._trainer.score(plan, samples, routing, selected)

    def _fetch(self, plan: StepPlan) -> Fetched:
        with self._trace.span("fetch", version=plan.step):
            return self._samples.fetch(plan, self._trainer.replays_engine(plan))

    async def train(self, plan: StepPlan) -> StepReport:
        return await self._main.run(lambda: self._train(plan))

    def _train(self, plan: StepPlan) -> StepReport:
        fetched, self._scored = self._scored or self._fetch(plan), None
        samples, routing, selected, seconds = fetched
        report = self._trainer.train(plan, samples, routing, selected)
        report.seconds["fetch"] = seconds
        self._trace.flush()
        return report

    async def evaluate(self, plan: StepPlan) -> StepReport:
        return await self._main.run(lambda: self._evaluate(plan))

    def _evaluate(self, plan: StepPlan) -> StepReport:
        with self._trace.span("evaluate", version=plan.step):
            samples, _, _, _ = self._samples.fetch(plan, replays=False)
            report = self._trainer.evaluate(plan, samples)
        self._trace.flush()
        return report

    async def sync_weights(self, request: WeightRound) -> RoundReport:
        return await self._main.run(lambda: self._weights.round(request))

    async def save(self, path: str, version: int, controller: bytes) -> None:
        await self._main.run(lambda: self._save(Path(path), version, controller))

    def _save(self, path: Path, version: int, controller: bytes) -> None:
        with self._trace.span("checkpoint", version=version):
            self._checkpointer.save(path, version, controller)
        self._trace.flush()

    async def saved(self, wait: bool) -> bool:
        return await self._main.run(lambda: self._checkpointer.finish(wait))

    async def hold(self, what: Hold) -> HoldReport:
        return await self._main.run(lambda: self._trainer.hold(what))

    async def export(self, path: str) -> None:
        await self._main.run(lambda: self._weights.export(Path(path)))


def _listen(host: str, world_size: int) -> dist.TCPStore:
    """Opens the rendezvous on an ephemeral port of `host` alone. By itself, TCPStore binds every
    interface."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=True,
        timeout=timedelta(seconds=_RENDEZVOUS_S),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _connect(member: Member) -> dist.TCPStore:
    """Connects to the rendezvous that rank 0 advertises."""
    first = member.call_blocking(member.wait_for_one("trainer", 0, _RENDEZVOUS_S), _RENDEZVOUS_S + 10)
    port = int(first.details["store_port"])
    return dist.TCPStore(first.host, port, timeout=timedelta(seconds=_RENDEZVOUS_S))


def main() -> None:
    """Serves rank `--index` until the node agent ends the process."""
    os.environ.update(NCCL_ENVIRONMENT)  # before NCCL reads it; both ends of a transfer need the same
    process = MemberProcess.from_command_line()
    config = process.folder.section("trainer", TrainerConfig)
    torch.set_num_threads(config.threads or int(os.environ.get("OMP_NUM_THREADS", "1")))
    world_size = Plan.read(process.folder.plan).count("trainer")
    rendezvous = _listen(process.host, world_size) if process.index == 0 else None
    main_thread = MainThread()
    trace = process.tracer()
    rank = TrainerRank(process.folder, process.index, world_size, main_thread, rendezvous, trace)
    details: dict[str, str | int] = {} if rendezvous is None else {"store_port": rendezvous.port}
    rank.thread = MemberThread(
        main_thread, process.folder, "trainer", process.index, rank, process.host, details
    )
    with rank.thread:
        main_thread.serve()


if __name__ == "__main__":
    main()

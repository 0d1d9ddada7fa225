"""A trainer of one rank, as the learning curves use it."""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from benchmarks.learning.task import Task
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.batch_plan import Part
from verst.runtime.controller.mini_batches import plan_updates
from verst.runtime.controller.stage_parts import parts_of_stage
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Group
from verst.runtime.messages.step_plan import StepReport
from verst.runtime.trainer.config import OldLogprobs, TrainerConfig
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.trainer import Trainer
from verst.sync.hf.folder import read_config
from verst.sync.links.engine_format import EngineFormat
from verst.sync.links.gather import whole_tensors
from verst.sync.links.whole_share import WholeShare
from verst.sync.versions.sender import VersionSender

ROWS = 32  # of a step on rows of a stage


class Trained:
    """A fresh trainer, from a model folder."""

    def __init__(
        self,
        model: Path,
        algorithm: AlgorithmConfig,
        scratch: Path,
        lr: float,
        old: OldLogprobs = "auto",
    ) -> None:
        self.algorithm, self._model = algorithm, model
        self.parallel = Parallel(0, 1, dist.FileStore(tempfile.mktemp(dir=scratch), 1), timeout_s=120)
        megatron = {"lr": lr, "optimizer": "adam", "weight-decay": 0.0, "clip-grad": 1.0}
        self.trainer = Trainer(
            ModelConfig(path=str(model), dtype="float32"),
            TrainerConfig(max_tokens_per_microbatch=4096, megatron=megatron, old_logprobs=old),
            algorithm,
            self.parallel,
            train_steps=algorithm.updates,
        )
        shapes = whole_tensors(self.trainer.model.bound.layout)
        grouped = EngineFormat(read_config(str(model)), shapes).grouped(shapes)
        self._share = WholeShare(self.trainer.model.bound, grouped, 1 << 28, torch.float32)

    def step(
        self, version: int, parts: Sequence[Part], groups: Sequence[Group], stage: int | None = None
    ) -> StepReport:
        """One step on these groups, of as many updates as the recipe says; `stage` is that of rows."""
        policy = parts[0].term == "policy"
        plan = plan_updates(
            step=version, parts=parts, dp_size=1, max_tokens=4096, pad_multiple=1,
            mini_batches=self.algorithm.mini_batches if policy else 1,
            epochs=self.algorithm.epochs if policy else 1,
            skip_zero_advantage=self.algorithm.skip_zero_advantage,
        )  # fmt: skip
        samples = {(s.group, s.index): s for group in groups for s in group.samples}
        return self.trainer.train(msgspec.structs.replace(plan, stage=stage), samples)

    def rows(self, task: Task, seed: int) -> Iterator[StepReport]:
        """Trains the recipe's first stage, which has rows, on rows that are drawn: a step for each report."""
        (span, *_), draw = self.algorithm.spans, random.Random(seed)
        for step in range(span.end):
            problems = [draw.choice(task.problems) for _ in range(ROWS)]
            if span.stage.kind == "sft":
                groups = [task.demonstration(i, problem) for i, problem in enumerate(problems)]
            else:
                groups = [task.pair(i, problem, draw) for i, problem in enumerate(problems)]
            parts = parts_of_stage([group.meta(0) for group in groups], span.stage)
            yield self.step(step, parts, groups, span.number)

    def publish(self, sender: VersionSender, version: int) -> None:
        """Writes the weights as a version in the sender's folder."""
        sender.send(version, self._share.buckets())

    def save(self, folder: Path) -> Path:
        """Writes the model as a Hugging Face folder."""
        from safetensors.torch import save_file

        folder.mkdir()
        for file in self._model.iterdir():
            if not file.name.startswith("model"):
                (folder / file.name).write_bytes(file.read_bytes())
        tensors = {
            name: tensor.detach().clone().contiguous()
            for names, found in self._share.buckets()
            for name, tensor in zip(names, found, strict=True)
        }
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    def close(self) -> None:
        """Leaves the world, so that another trainer can start."""
        self.trainer.close()
        del self.trainer
        gc.collect()

"""The loop of the learning curves: one engine and one process of trainers, on a CPU.

To start both once for all curves, this is the loop instead of the controller: it calls the engine, the advantage
functions, the step's plan and the trainer as that does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.names import stage
from benchmarks.learning.task import Task, tiny_dense
from benchmarks.learning.trained import Trained
from verst.runtime.algorithms import advantages
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.batch_plan import Part
from verst.runtime.controller.imitation import good_answers
from verst.runtime.hooks.dotted import load_function
from verst.runtime.messages.jobs import Prompt
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Group, Sample
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.generate import Conversation, GenerateCall
from verst.sync.versions.sender import VersionSender

PROMPTS, SAMPLES, NEW_TOKENS = 8, 8, 5
FIGURES = {"entropy", "clip_fraction", "covariance_chosen"}  # of each step, where it reports them
MEASURED = 400  # answers of a measurement
# The mean rewards of the models with which the curves begin, and of the teacher, at least. How many supervised steps
# that takes depends on what a machine rounds.
REWARD_OF = {"start": 0.35, "teacher": 0.97}
SFT_LR, SFT_STEPS = 3e-3, 200


@contextlib.asynccontextmanager
async def loop(scratch: Path) -> AsyncIterator[Loop]:
    """Starts the engine, makes the models, and ends the engine."""
    random_model = tiny_dense(scratch / "random")
    config = RolloutConfig(reward="unused:here", concurrency=PROMPTS * SAMPLES, start_timeout_s=600)
    engine = await Engine.start(
        ModelConfig(path=str(random_model), dtype="float32"), config, log=scratch / "engine.log", routing=False,
        seed=1, device="cpu",
    )  # fmt: skip
    try:
        made = Loop(scratch, Task(random_model), engine, {"random": random_model})
        await made.imitate()
        yield made
    finally:
        await engine.stop()


class Loop:
    """The engine, the models that there are at first, and the numbers of weight versions."""

    def __init__(self, scratch: Path, task: Task, engine: Engine, models: dict[str, Path]) -> None:
        self.scratch, self.task, self.engine, self.models = scratch, task, engine, models
        # Versions count up over all curves, so that the engine never takes one for another.
        self.sender = VersionSender(scratch / "versions", keep=2)
        self.published = 0

    def algorithm(self, keys: dict[str, Any], steps: int) -> AlgorithmConfig:
        """The `algorithm` section of a curve, in mode sync; its teacher, if it has one, is the one that there is."""
        sizes = {"steps": steps, "prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES}
        own = {key: value for key, value in keys.items() if key not in ("mode", "old_logprobs")}
        if "teacher" in own:
            own["teacher"] = {**own["teacher"], "path": str(self.models["teacher"])}
        return AlgorithmConfig.model_validate({**sizes, **own})

    async def imitate(self) -> None:
        """Makes the models of `REWARD_OF`, which imitate demonstrations until they are so good."""
        trained = Trained(
            self.models["random"], self.algorithm(stage("sft", SFT_STEPS), 1), self.scratch, SFT_LR
        )
        wanted = list(REWARD_OF)
        for step, _ in enumerate(trained.rows(self.task, seed=0)):
            while wanted and step % 2 and await self.measured(trained) >= REWARD_OF[wanted[0]]:
                name = wanted.pop(0)
                self.models[name] = trained.save(self.scratch / name)
            if not wanted:
                break
        trained.close()
        if wanted:
            raise RuntimeError(f"{SFT_STEPS} supervised steps made no {wanted[0]}")

    async def load(self, trained: Trained) -> None:
        """Brings the trainer's weights into the engine."""
        self.published += 1
        trained.publish(self.sender, self.published)
        await self.engine.pause("in_place")
        await self.engine.load_version(str(self.sender.root), self.published, None, 60)
        await self.engine.resume()

    async def answer(self, group: int, index: int, problem: str, version: int, seed: int) -> Sample:
        """One answer with its reward, whose tokens count as those of weight version `version` of the curve."""
        ids = self.task.prompt(problem)
        call = GenerateCall(
            engine=self.engine, prompt=Prompt(ids=ids, text="", label=None, metadata={}),
            sampling=SamplingConfig(temperature=1.0, max_new_tokens=NEW_TOKENS), seed=seed,
            tokenizer=self.task.tokenizer, evaluation=False, group=group, index=index,
        )  # fmt: skip
        conversation = Conversation(call)
        await conversation.generate()
        response = conversation.response()
        response.weight_versions[:] = version
        score = self.task.reward(problem, response.ids.tolist())
        return response.sample(ids, group=group, index=index, reward=score, metadata={})

    async def groups(self, step: int, seed: int, version: int, samples: int) -> list[Group]:
        """The prompt groups of a step."""
        draw = random.Random(f"{seed} {step}")
        made = []
        for number in range(PROMPTS * SAMPLES // samples):
            problem = draw.choice(self.task.problems)
            answers = [
                self.answer(step * 1000 + number, index, problem, version, draw.randrange(1 << 30))
                for index in range(samples)
            ]
            made.append(asyncio.gather(*answers))
        return [Group(id=found[0].group, samples=list(found)) for found in await asyncio.gather(*made)]

    async def measured(self, trained: Trained) -> float:
        """The mean reward of the trainer's weights, over the same problems with the same seeds for every curve."""
        await self.load(trained)
        answers = [
            self.answer(i, 0, self.task.problems[i % len(self.task.problems)], 0, i) for i in range(MEASURED)
        ]
        return sum(one.reward for one in await asyncio.gather(*answers)) / MEASURED

    async def on_rows(self, keys: dict[str, Any], seed: int, lr: float, model: str) -> dict[str, Any]:
        """The curve of a stage with rows: its loss."""
        trained = Trained(self.models[model], self.algorithm(keys, 1), self.scratch, lr)
        try:
            before = await self.measured(trained)
            reports = list(trained.rows(self.task, seed))
            after = await self.measured(trained)
        finally:
            trained.close()
        return {"seed": seed, "before": before, "after": after, "loss": [report.loss for report in reports]}

    async def curve(
        self, keys: dict[str, Any], seed: int, steps: int, lr: float, stale: int = 1
    ) -> dict[str, Any]:
        """Trains from the shared start; returns rewards and a few figures by step."""
        algorithm = self.algorithm(keys, steps)
        old = keys.get("old_logprobs", "auto")
        trained = Trained(self.models["start"], algorithm, self.scratch, lr, old)
        rows: dict[str, list[float]] = {"reward": [], "grad_norm": []}
        began, version = time.monotonic(), 0
        try:
            before = await self.measured(trained)
            for step in range(steps):
                if step % stale == 0:
                    await self.load(trained)
                    version = step
                groups = await self.groups(step, seed, version, algorithm.samples_per_prompt)
                report = trained.step(step, parts_of(groups, algorithm), groups)
                rewards = [sample.reward for group in groups for sample in group.samples]
                rows["reward"].append(sum(rewards) / len(rewards))
                rows["grad_norm"].append(report.grad_norm)
                for name in FIGURES & report.metrics.keys():
                    rows.setdefault(name, []).append(report.metrics[name])
            after = await self.measured(trained)
        finally:
            trained.close()
        return {"seed": seed, "before": before, "after": after, "seconds": time.monotonic() - began, **rows}


def parts_of(groups: Sequence[Group], algorithm: AlgorithmConfig) -> list[Part]:
    """The terms of a policy step."""
    metas = [group.meta(0) for group in groups]
    advantage = load_function(algorithm.advantage, "advantage function")
    found = advantages.shaped(advantage(metas, *advantages.options_of(algorithm)), metas, algorithm)
    if algorithm.teacher is not None:  # it teaches alone; the rewards are measured only
        found = [[0.0] * len(row) for row in found]
    policy = Part("policy", metas, found, algorithm.loss_average, longest=NEW_TOKENS)
    values = [dataclasses.replace(policy, term="value")] if algorithm.critic is not None else []
    return [policy, *values, *good_answers(metas, found, algorithm)]

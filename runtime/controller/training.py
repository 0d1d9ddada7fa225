"""Runs one step: plans its updates, lets the trainer's ranks train, and reports the figures."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import msgspec

from verst.runtime.algorithms.advantages import options_of, shaped
from verst.runtime.algorithms.stages import Span
from verst.runtime.controller.background import Background
from verst.runtime.controller.batch_plan import Part
from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.curricula import Curricula
from verst.runtime.controller.happening_hooks import HappeningHooks
from verst.runtime.controller.imitation import good_answers
from verst.runtime.controller.logprob_filter import Filtered, LogprobFilter
from verst.runtime.controller.mini_batches import plan_updates, weighted_again
from verst.runtime.controller.own_average import OwnAverage
from verst.runtime.controller.penalties import penalised
from verst.runtime.controller.prompts import PromptSource
from verst.runtime.controller.reporting.agreement import AgreementWatch
from verst.runtime.controller.reporting.measure import StepRecord
from verst.runtime.controller.reporting.reporting import Reporting
from verst.runtime.controller.reporting.shown import ShownFiles
from verst.runtime.controller.stage_parts import parts_of_stage
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.stores import Stores
from verst.runtime.controller.trainers import Trainers
from verst.runtime.hooks.happenings import StepBegin, StepEnd
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.values import advantages_of
from verst.runtime.messages.apis import TrainerInfo
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import SampleScore, StepPlan, StepReport
from verst.runtime.store.recording import StepList


class Training:
    """Carries out `Train` and `TrainOffline`."""

    def __init__(
        self,
        config: ControllerConfig,
        advantage: Hook,
        trainers: Trainers,
        info: TrainerInfo,
        stores: Stores,
        prompts: PromptSource,
        record: StepRecord,
        reporting: Reporting,
        shown: ShownFiles,
        background: Background,
        hooks: HappeningHooks,
        curricula: Curricula,
        steps: StepList | None,
        logprob_filter: LogprobFilter | None = None,
    ) -> None:
        """`advantage` computes the advantages of a step's samples from the metadata of its groups. `steps`: the list of
        what each step trained on, where the recipe keeps it. `logprob_filter`: where the recipe names one."""
        self._steps = steps
        self._filter = logprob_filter
        self._config = config
        self._advantage = advantage
        self._trainers = trainers
        self._info = info
        self._stores = stores
        self._prompts = prompts
        self._record = record
        self._reporting = reporting
        self._shown = shown
        self._background = background
        self._hooks = hooks
        self._curricula = curricula
        self._agreement = AgreementWatch(config)
        self._average = OwnAverage.of(config.algorithm)

    async def train(self, version: int, groups: list[GroupMeta]) -> ev.Trained:
        """Runs a reinforcement-learning step on prompt groups."""
        self._record.step_begins(groups, version)
        step = version + 1  # a step has the number of the weight version that it makes
        await self._hooks.tell("step_begin", f"step {step}", StepBegin(step=step, groups=_copies(groups)))
        algorithm = self._config.algorithm
        # With a critic each token's reward loses its own part, on the ranks.
        by_sample = algorithm.kl_in == "reward" and algorithm.critic is None
        scored = await self._score(version, [_unjudged(groups)]) if by_sample else None
        penalty = penalised(groups, scored.found) if scored is not None else None
        rewarded = groups if penalty is None else penalty.groups
        # A function that changes what it gets must not change what is reported.
        # Episodes are compared, not samples: one with five samples must not count five times in a mean.
        copies = tuple(group.by_episode() for group in _copies(rewarded))
        episodes = [group.by_episode() for group in groups]
        found = await self._advantage(
            f"step {step}", copies, *options_of(algorithm), check=advantages_of(episodes)
        )
        of_episodes = shaped(found, episodes, algorithm)
        advantages = [g.for_samples(values) for g, values in zip(groups, of_episodes, strict=True)]
        train = self._config.data.train
        sources = train.by_name()
        longest = train.longest_answer(self._config.rollout.sampling.max_new_tokens)
        policy = Part(
            "policy",
            groups,
            advantages,
            algorithm.named_average,
            longest=longest,
            factors=[sources[group.source].loss_weight for group in groups],
            own_weights=await self._average.weights(step, groups, longest) if self._average else None,
        )
        if self._steps is not None:
            self._steps.begins(step, groups)
        values = [dataclasses.replace(policy, term="value")] if algorithm.critic is not None else []
        parts = [policy, *values, *good_answers(groups, advantages, algorithm)]
        plan, filtered = await self._filtered(version, parts, scored)
        shown = [name for name in self._shown.choose(step, groups) if name not in filtered.dropped]
        with self._record.busy("train", version, groups=[g.id for g in groups]):
            reports = await self._trainers.all("train", msgspec.structs.replace(plan, shown=shown))
        figures = self._record.step_ends(reports[0])
        if penalty is not None:
            figures["kl_penalty"] = penalty.mean
        if self._filter is not None:
            figures["samples_filtered"] = filtered.counts
        happened = StepEnd(step=step, line=figures, groups=_copies(groups))
        line = await self._hooks.with_figures(happened)
        self._reporting.metric(**line)
        if warning := self._agreement.warning(step, reports[0].metrics):
            self._reporting.event("engines_disagree", warning)
        if remark := self._agreement.remark(step, reports[0].metrics):
            self._reporting.event("agreement_indirect", remark)
        samples = [sample for report in reports for sample in report.shown]
        written = asyncio.to_thread(self._shown.write, step, samples)
        self._background.start(written, f"samples of step {step}")
        await self._curricula.end_step(step, groups)
        await self._hooks.tell("step_end", f"step {step}", dataclasses.replace(happened, line=line))
        return ev.Trained(version + 1)

    async def keep(self, step: int, groups: list[GroupMeta]) -> ev.Kept:
        """Notes the groups of a step on which nothing is trained, and reports them."""
        self._record.step_begins(groups, step - 1)
        if self._steps is not None:
            self._steps.begins(step, groups)
        self._reporting.metric(**self._record.groups_kept(step))
        await self._curricula.end_step(step, groups)
        return ev.Kept()

    async def offline(self, version: int) -> ev.Trained:
        """Runs a step on rows of a data file. Measures held-out rows before the first one of a stage, and when due."""
        rows = self._prompts.stages
        span = rows.span(version)
        if version == span.first:
            await self._evaluate_rows(span, version)
        began = time.monotonic()
        metas = await self._stores.push(rows.batch(version))
        stored = time.monotonic()
        with self._record.busy("train", version):
            report: StepReport = (await self._trainers.all("train", self._plan_rows(version, span, metas)))[0]
        await self._stores.discard([m.id for m in metas])
        now = time.monotonic()
        seconds = {"step": now - began, "rows": stored - began, "train": now - stored}
        self._reporting.offline_step(span.stage.kind, rows.epochs(version), report, seconds)
        await self._evaluate_rows(span, version + 1)
        return ev.Trained(version + 1)

    async def _evaluate_rows(self, span: Span, version: int) -> None:
        """Measures the loss on a stage's held-out rows, if that is due at this version."""
        if not span.evaluates(version):
            return
        metas = await self._stores.push(self._prompts.stages.held_out(span, version))
        with self._record.busy("evaluate", version):
            plan = self._plan_rows(version, span, metas)
            report: StepReport = (await self._trainers.all("evaluate", plan))[0]
        await self._stores.discard([m.id for m in metas])
        self._reporting.rows_evaluated(span.stage.kind, version, report, len(metas))

    async def _filtered(
        self, version: int, parts: list[Part], scored: _Scored | None
    ) -> tuple[StepPlan, Filtered]:
        """The step's plan without the samples that the recipe's filter drops. A step that was scored keeps the plan's
        micro-batches."""
        filtered = Filtered(set(), {})
        if self._filter is not None:
            scored = scored or await self._score(version, parts)
            filtered = await self._filter(version + 1, parts[0], scored.found)
            parts = [filtered.without_dropped(part) for part in parts]
        if scored is None:
            return self._plan(version, parts), filtered
        return weighted_again(scored.plan, parts, self._config.algorithm.mini_batches), filtered

    async def _score(self, version: int, parts: list[Part]) -> _Scored:
        """Lets the ranks score the step's samples. Raises ValueError if two ranks scored the same one."""
        plan = self._plan(version, parts)
        with self._record.busy("train", version):
            answers = await self._trainers.all("score", plan)
        found: list[SampleScore] = [score for answer in answers for score in answer]
        if len({(score.group, score.index) for score in found}) != len(found):
            raise ValueError(f"step {version + 1}: the trainer scored a sample twice")
        return _Scored(plan, found)

    def _plan_rows(self, version: int, span: Span, metas: list[GroupMeta]) -> StepPlan:
        """The plan of a step, or of a measurement, on rows of a stage."""
        plan = self._plan(version, parts_of_stage(metas, span.stage))
        return msgspec.structs.replace(plan, stage=span.number)

    def _plan(self, version: int, parts: list[Part]) -> StepPlan:
        algorithm, policy = self._config.algorithm, parts[0].term == "policy"
        return plan_updates(
            step=version,
            parts=parts,
            mini_batches=algorithm.mini_batches if policy else 1,
            epochs=algorithm.epochs if policy else 1,
            dp_size=self._info.dp_size,
            max_tokens=self._config.trainer.max_tokens_per_microbatch,
            pad_multiple=self._info.pad_multiple,
            count_multiple=self._info.microbatch_multiple,
            skip_zero_advantage=algorithm.skip_zero_advantage,
        )


@dataclasses.dataclass(frozen=True)
class _Scored:
    """The plan by which the ranks scored a step's samples, and what they found."""

    plan: StepPlan
    found: list[SampleScore]


def _unjudged(groups: list[GroupMeta]) -> Part:
    """A step's samples before their advantages are known. The plan has the same micro-batches whatever these are."""
    return Part("policy", groups, [[0.0] * len(group.rewards) for group in groups], "token")


def _copies(groups: list[GroupMeta]) -> tuple[GroupMeta, ...]:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(groups), type=tuple[GroupMeta, ...])

"""One rank's trainer: the Megatron model and its training step. It knows no sockets, no run folder and no
actors.

All ranks call the same methods in the same order; every method is collective over the world. Calls come from
one thread (see `cpu_adapter`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.covariance import needs_covariance
from verst.runtime.algorithms.kl_control import KlControl
from verst.runtime.algorithms.references import needs_reference
from verst.runtime.hooks.config import HooksConfig
from verst.runtime.messages.jobs import Hold, HoldReport
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import SampleScore, StepPlan, StepReport
from verst.runtime.metrics.trace import NO_TRACE, Tracer
from verst.runtime.trainer.config import TrainerConfig
from verst.runtime.trainer.model import cpu_adapter
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.phases import Phases

cpu_adapter.apply()  # before the imports below, which import megatron

from verst.runtime.trainer.model.frozen_model import FrozenModel
from verst.runtime.trainer.model.trained_model import TrainedModel
from verst.runtime.trainer.replay.probe import RoutingProbe, probed_batches
from verst.runtime.trainer.replay.routing import RoutingReplay, routed_freely
from verst.runtime.trainer.share.fetch import Replayed
from verst.runtime.trainer.step import response_values
from verst.runtime.trainer.step.agreement import Agreement
from verst.runtime.trainer.step.covariance_choice import CovarianceChoice
from verst.runtime.trainer.step.forward import Head
from verst.runtime.trainer.step.logprobs import LogprobHead
from verst.runtime.trainer.step.memory import DeviceMemory, begin_peak, peak_gib
from verst.runtime.trainer.step.microbatches import MicroBatches
from verst.runtime.trainer.step.model_in_training import ModelInTraining, ModelName
from verst.runtime.trainer.step.objective import Objective, Observer
from verst.runtime.trainer.step.penalties import divergences
from verst.runtime.trainer.step.rank_hooks import RankHooks
from verst.runtime.trainer.step.reference import Reference
from verst.runtime.trainer.step.sample_scores import sample_scores
from verst.runtime.trainer.step.score_objective import ScoreObjective
from verst.runtime.trainer.step.scoring import (
    POLICY_SCORES,
    CriticValues,
    EngineAsOld,
    OwnRouting,
    PolicyAsOld,
    PolicyScores,
    ScoringPass,
    UnderFrozenWeights,
    UnderTeacher,
    score,
)
from verst.runtime.trainer.step.shown import ShownSamples
from verst.runtime.trainer.step.terms import PolicyTerm
from verst.runtime.trainer.step.token_advantages import TokenAdvantages
from verst.runtime.trainer.step.token_hooks import DivergenceHook
from verst.runtime.trainer.step.updates import Update, name_of, of_step, with_critic
from verst.runtime.trainer.step.value_objective import ValueObjective
from verst.runtime.trainer.step.values import scalar_head


class Trainer:
    """Trains one rank's part of the models, one step plan at a time.

    Checkpoints hold all of `models`. Weight sync and export take `model`, the policy's weights.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: TrainerConfig,
        algorithm: AlgorithmConfig,
        parallel: Parallel,
        train_steps: int,
        trace: Tracer = NO_TRACE,
        hooks: HooksConfig = HooksConfig(),  # noqa: B008
    ) -> None:
        """Builds the model and reads its weights from `model.path`.

        Raises ValueError when the recipe's arguments or the checkpoint do not fit, and HookError when a function of
        the recipe cannot be loaded.
        """
        self.config, self.algorithm, self.parallel = config, algorithm, parallel
        self._trace = trace
        self._hooks = RankHooks(hooks, parallel.rank)
        PolicyTerm(algorithm, 0, 0.0)  # a function that cannot be loaded shows now, and not in the first step
        replays = algorithm.routing_replay != "off"
        # The weight version that the first policy step trains.
        self.first_policy_version = algorithm.offline_steps
        self._agreement = Agreement(
            config.max_logprob_diff,
            model.dtype,
            replays=replays,
            only_step=None if algorithm.mode == "sync" else self.first_policy_version,
        )
        self.model = TrainedModel(
            model,
            config.megatron,
            parallel,
            train_steps,
            routing_replay=replays,
            scores=algorithm.trains_reward_model,
        )
        self.reference: Reference | None = None
        if needs_reference(algorithm):
            self.reference = Reference(algorithm, self.model, parallel)
            self.reference.begin(0)
        self.teacher: FrozenModel | None = None
        if algorithm.teacher is not None:
            self.teacher = FrozenModel(
                algorithm.teacher.path,
                model.dtype,
                config.megatron,
                parallel,
                vocabulary=self.model.args.vocab_size,
            )
        self.kl = KlControl(algorithm)
        # Of the step that is scored and not trained yet.
        self._scored: tuple[list[Batch], Phases] | None = None
        self._covariance = CovarianceChoice(algorithm, parallel) if needs_covariance(algorithm) else None
        self._critic = self._new_critic(model)
        self.models: dict[ModelName, ModelInTraining]
        self._prepare_steps(self._new_replay() if replays else None)
        self.memory = DeviceMemory(
            parallel.device,
            weights=self.model.weights,
            state=self._state_beside_the_weights,
            gradients=lambda: [g for each in self.models.values() for g in each.trained.gradients()],
        )

    def _new_critic(self, model: ModelConfig) -> TrainedModel | None:
        """The weights of the recipe's critic, which routes freely."""
        critic = self.algorithm.critic
        if critic is None:
            return None
        return TrainedModel(
            model,
            critic.arguments(self.config.megatron),
            self.parallel,
            self.algorithm.critic_updates,
            critic=critic.path or model.path,
        )

    def _new_replay(self) -> RoutingReplay:
        model = self.model
        return RoutingReplay(model.chunks, model.transformer_config, self.parallel, model.pad_multiple)

    def _prepare_steps(self, replay: RoutingReplay | None) -> None:
        """Builds the parts of a step that depend on whether routing is replayed."""
        model = self.model
        self.replay = replay
        self._microbatches = MicroBatches(
            self.parallel, model.pad_multiple, model.microbatch_multiple, replay
        )
        self.models = {"policy": ModelInTraining("policy", model, self._head(), replay)}
        self._reference_pass: list[ScoringPass] = []
        if self.reference is not None:
            policy = self.models["policy"].pipeline
            self._reference_pass = [UnderFrozenWeights(policy, self.reference.weights, replay, self._hooks)]
        if self._critic is not None:
            self.models["critic"] = ModelInTraining("critic", self._critic, scalar_head, None)
        self._scoring = self._scoring_passes(replay)

    def _head(self) -> Head:
        """What the last stage makes of hidden states: log-probabilities and entropies, or a reward model's scores."""
        if self.algorithm.trains_reward_model:
            return scalar_head
        return LogprobHead(
            self.model.args.vocab_size,
            # A user's own loss may use the entropy's gradient; the bundled ones do not.
            with_entropy_grad=self.algorithm.entropy_coef != 0
            or not self.algorithm.loss.startswith("verst."),
        )

    def _scoring_passes(self, replay: RoutingReplay | None) -> list[ScoringPass]:
        """The passes before a policy step."""
        passes: list[ScoringPass] = []
        policy = self.models["policy"].pipeline
        if replay is not None and self.algorithm.routing_replay == "trainer":
            passes.append(OwnRouting(policy, replay))
        filters = self.algorithm.logprob_filter is not None
        if filters:
            passes.append(PolicyScores(policy, self._hooks))
        if self.config.old_logprobs == "rollout":
            passes.append(EngineAsOld())
        elif (
            self.algorithm.updates_per_step > 1
            or self.algorithm.kl_in == "reward"
            or needs_covariance(self.algorithm)
        ):
            passes.append(PolicyAsOld(policy, self.config.old_logprobs, self._hooks, scored=filters))
        if self.algorithm.kl_coef:
            passes += self._reference_pass
        if self.teacher is not None:
            passes.append(UnderTeacher(self.teacher, self._hooks))
        if "critic" in self.models:
            passes.append(CriticValues(self.models["critic"].pipeline))
        return passes

    def _state_beside_the_weights(self) -> Iterator[Tensor]:
        """What is not sent to the engines: the optimizers' state, a critic's weights, the reference and the teacher."""
        for each in self.models.values():
            yield from each.trained.optimizer_state()
        yield from self._critic.weights() if self._critic is not None else ()
        yield from self.reference.weights.copies if self.reference is not None else ()
        yield from self.teacher.weights() if self.teacher is not None else ()

    def hold(self, what: Hold) -> HoldReport:
        """Keeps everything on the device, only the weights (to send them), or nothing. See `DeviceMemory`."""
        if self.memory.holds == "all":
            # The masters' gradients may be copies. The next step makes them again.
            for each in self.models.values():
                each.trained.optimizer.zero_grad()
        return self.memory.hold(what)

    @property
    def replayed(self) -> Replayed | None:
        """Which of the engine's choices this rank replays; None when it replays none."""
        if self.replay is None or self.algorithm.routing_replay != "rollout":
            return None
        selection = self.replay.selection
        return Replayed(
            self.replay.share, self.replay.moe_layers, selection.share if selection is not None else None
        )

    def replays_engine(self, plan: StepPlan) -> bool:
        """Whether `train` needs the engine's routing for this plan.

        Demonstrations come from no engine, so they have none.
        """
        return self.algorithm.routing_replay == "rollout" and "policy" in plan.terms

    def train(
        self,
        plan: StepPlan,
        samples: Mapping[tuple[int, int], Sample],
        routing: Sequence[torch.Tensor] | None = None,
        selected: Sequence[torch.Tensor] | None = None,
    ) -> StepReport:
        """Takes a step's updates on this data-parallel rank's micro-batches.

        `samples`, by (group, index), are those that the plan gives to this data-parallel rank. All of its
        tensor, context and pipeline ranks pass the same ones.

        Where the engine's choices are replayed, `routing` holds this rank's routing entries of each
        micro-batch (`share/routing.py`), and `selected` the positions that sparse attention chose
        (`share/selection.py`).

        Raises ValueError when those are missing or fit another model, FloatingPointError when the loss or a gradient
        is not finite, and EngineDisagreesError before the first update if the engines compute another model. That
        update is then not made; one of the critic comes after the policy's. The run ends with its last checkpoint.
        """
        if self._scored is None:
            batches, timed = self._batches(plan, samples, routing, selected)
        else:
            (scored, timed), self._scored = self._scored, None
            again = self._collated(plan, samples, routing, selected)
            batches = [new.with_scores_of(old) for new, old in zip(again, scored, strict=True)]
        batches, figures = self._with_advantages(plan, batches, timed)
        probe = self._probe(plan, batches[plan.updates[0]], timed)
        if self.replay is not None:
            self.replay.begin_step(probe.batches)
        shown = ShownSamples(plan, samples, batches, self.parallel, self.replay, self.config.old_logprobs)
        observers = (shown.see, probe.see)
        updates = [
            self._update(plan, number, batches[part], observers, timed)
            for number, part in enumerate(plan.updates)
        ]
        step = of_step(updates, plan)
        kl_metrics = {"kl_coef": self.kl.coefficient} if self.kl.adapts else {}
        if "kl_reference_k3" in step.metrics and not self.algorithm.warms_up(plan.step):
            self.kl.measured(step.metrics["kl_reference_k3"])
        return StepReport(
            step=plan.step,
            loss=step.loss,
            grad_norm=step.grad_norm,
            lr=step.lr,
            tokens=self._tokens(batches),
            metrics=step.metrics
            | figures
            | kl_metrics
            | self._replay_metrics(plan, batches)
            | probe.reduce()
            | peak_gib(self.parallel),
            seconds=timed.seconds,
            shown=shown.take(),
        )

    def score(
        self,
        plan: StepPlan,
        samples: Mapping[tuple[int, int], Sample],
        routing: Sequence[torch.Tensor] | None = None,
        selected: Sequence[torch.Tensor] | None = None,
    ) -> list[SampleScore]:
        """Scores the samples of a step, and returns the sums of what it finds in each (`step/sample_scores.py`).

        The arguments are those of `train`, which must follow with a plan of the same micro-batches and other weights.
        Raises FloatingPointError if a sum is not finite.
        """
        batches, timed = self._batches(plan, samples, routing, selected)
        taken: list[Tensor] | None = None
        if self._pays_by_sample and self.parallel.is_last_stage:
            found = divergences(plan, batches, DivergenceHook(self.algorithm.kl))
            taken = [self.kl.coefficient * kl for kl in found]
        self._scored = [batch.without_signals(POLICY_SCORES) for batch in batches], timed
        return sample_scores(plan, batches, taken, self.parallel)

    @property
    def _pays_by_sample(self) -> bool:
        """Whether the KL counts in the rewards of whole samples. With a critic each token's reward loses its own."""
        return self.algorithm.kl_in == "reward" and self.algorithm.critic is None

    def _batches(
        self,
        plan: StepPlan,
        samples: Mapping[tuple[int, int], Sample],
        routing: Sequence[torch.Tensor] | None,
        selected: Sequence[torch.Tensor] | None,
    ) -> tuple[list[Batch], Phases]:
        """The step's micro-batches with their scores, and the times that those took."""
        timed = Phases(self._trace, plan.step)
        begin_peak(self.parallel.device)
        batches = self._collated(plan, samples, routing, selected)
        return self._scored_batches(plan, batches, timed), timed

    def _with_advantages(
        self, plan: StepPlan, batches: list[Batch], timed: Phases
    ) -> tuple[list[Batch], dict[str, float]]:
        """With a critic, gives each token its own advantage; also the step's figures of that. Collective."""
        critic = self.algorithm.critic
        if critic is None or "value" not in plan.terms:
            return batches, {}
        taken = None
        with timed("token_advantages"):
            if self.algorithm.kl_in == "reward" and self.parallel.is_last_stage:
                found = divergences(plan, batches, DivergenceHook(self.algorithm.kl))
                taken = [self.kl.coefficient * kl.double() for kl in found]
            return TokenAdvantages(self.algorithm, critic, self.parallel)(batches, taken)

    def _collated(
        self,
        plan: StepPlan,
        samples: Mapping[tuple[int, int], Sample],
        routing: Sequence[torch.Tensor] | None,
        selected: Sequence[torch.Tensor] | None,
    ) -> list[Batch]:
        return self._microbatches.of_plan(plan, samples, routing, selected, self.replays_engine(plan))

    def _scored_batches(self, plan: StepPlan, batches: list[Batch], timed: Phases) -> list[Batch]:
        """The micro-batches with the signals that the terms of the plan need."""
        passes = self._scoring if "policy" in plan.terms else self._reference_pass
        if not {"policy", "dpo"} & set(plan.terms):
            return batches
        if self.reference is not None:
            self.reference.take(plan)
        return score(batches, passes, timed)

    def _update(
        self,
        plan: StepPlan,
        number: int,
        batches: Sequence[Batch],
        observers: Sequence[Observer],
        timed: Phases,
    ) -> Update:
        """Takes one of the step's updates. Observers see each sample once, in the first epoch."""
        if self._covariance is not None and "policy" in plan.terms:
            with timed("covariance_choice"):
                batches = self._covariance(plan, number, batches)
        seen = observers if number < len(plan.updates) // plan.epochs else ()
        objective = self._objective(plan, seen, old=self.config.old_logprobs, first=number == 0)
        policy, name = self.models["policy"], name_of(plan, number)
        told = partial(self._hooks.around_update, version=plan.step, number=number, count=len(plan.updates))
        if self.algorithm.warms_up(plan.step):
            update = policy.measure(batches, objective, timed)
            self._agreement.check(plan.step, update.metrics)
        else:
            told("before_update", weights="policy", trained=policy.trained)
            update = policy.update(
                name,
                batches,
                objective,
                timed,
                lr=self._own_learning_rate(plan),
                check=lambda metrics: self._agreement.check(plan.step, metrics),
            )
            told("after_update", weights="policy", trained=policy.trained)
        critic = self.algorithm.critic
        if critic is None or "value" not in plan.terms:
            return update
        values, model = ValueObjective(critic, plan, self.parallel), self.models["critic"]
        told("before_update", weights="critic", trained=model.trained)
        of_critic = model.update(f"{name}, critic", batches, values, timed)
        told("after_update", weights="critic", trained=model.trained)
        return with_critic(update, of_critic)

    def _objective(
        self, plan: StepPlan, observers: Sequence[Observer] = (), **options: Any
    ) -> Objective | ScoreObjective:
        """The objective of an update; `options` are those of `Objective`."""
        if "reward_model" in plan.terms:
            return ScoreObjective(self.algorithm, plan, self.parallel)
        coefficient = self.kl.coefficient
        return Objective(self.algorithm, plan, self.parallel, observers, kl_coef=coefficient, **options)

    def evaluate(self, plan: StepPlan, samples: Mapping[tuple[int, int], Sample]) -> StepReport:
        """Measures the objective and the figures of a plan under the present weights, and does not train them.

        `samples` are as in `train`. Nothing is replayed. The report's `grad_norm` and `lr` are 0.
        """
        timed = Phases(self._trace, plan.step)
        batches = self._microbatches.of_plan(plan, samples, None, None, replays_engine=False)
        batches = self._scored_batches(plan, batches, timed)
        objective = self._objective(plan)
        with routed_freely(self.replay):
            self.models["policy"].pipeline.evaluate(batches, objective)
        loss, metrics = objective.reduce()
        return StepReport(
            step=plan.step,
            loss=loss,
            grad_norm=0.0,
            lr=0.0,
            tokens=self._tokens(batches),
            metrics=metrics,
            seconds=timed.seconds,
        )

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray] | None:
        """Returns the log-probabilities of each sample's response, fp32 [R]; None before the last pipeline
        stage.

        All ranks of a data-parallel replica pass the same samples; replicas may pass different ones.
        """
        batches = self._microbatches.of_samples(samples, self.config.max_tokens_per_microbatch)
        found = self.models["policy"].pipeline.predict(batches)
        if not self.parallel.is_last_stage:
            return None
        return response_values.of_samples(samples, batches, found, self.parallel)

    def close(self) -> None:
        """Leaves the process groups."""
        self.parallel.close()

    def _probe(self, plan: StepPlan, batches: Sequence[Batch], timed: Phases) -> RoutingProbe:
        """Creates the step's probe of what replay changes.

        When a probe is due, this runs some of the step's micro-batches without replay.
        """
        interval = self.algorithm.routing_probe_interval if self.replays_engine(plan) else 0
        chosen = probed_batches(batches, plan.step, interval, self.model.microbatch_multiple)
        if not chosen:
            return RoutingProbe(self.parallel, [], [])
        with timed("routing_probe"), routed_freely(self.replay):
            return RoutingProbe(self.parallel, chosen, self.models["policy"].pipeline.predict(chosen))

    def _own_learning_rate(self, plan: StepPlan) -> float | None:
        """The learning rate of the step's own stage; None for other steps, or if it has none."""
        spans = (span for span in self.algorithm.spans if span.first <= plan.step < span.end)
        return next((span.stage.lr for span in spans), None)

    def _tokens(self, batches: Sequence[Batch]) -> int:
        """The step's tokens over all ranks. One rank of each data-parallel replica counts the replica's."""
        mine = sum(batch.real_tokens for batch in batches)
        return int(self.parallel.world_sum(mine * self.parallel.is_model_parallel_source))

    def _replay_metrics(self, plan: StepPlan, batches: Sequence[Batch]) -> dict[str, float]:
        """What was replayed, and what could not be; in a step on rows of a file there is nothing to replay."""
        if self.replay is None or "policy" not in plan.terms:
            return {}
        return self.replay.metrics(batches, self.parallel.world_sum)

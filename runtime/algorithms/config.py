"""The recipe's `algorithm` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from verst.runtime.algorithms.averages import AVERAGES, Average, known_average
from verst.runtime.algorithms.critic import CriticConfig
from verst.runtime.algorithms.option_uses import refuse_options_without_use
from verst.runtime.algorithms.stages import ROW_KINDS, PolicyStage, RewardModelStage, Span, Stage

RoutingReplayMode = Annotated[
    Literal["rollout", "trainer", "off"],
    BeforeValidator(lambda value: ("off", "rollout")[value] if isinstance(value, bool) else value),
]


class ReferenceConfig(BaseModel):
    """The reference model, from which `algorithm.kl_coef` holds the policy back."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(
        None,
        description="a Hugging Face folder with weights for the model of model.path; by default the reference is the "
        "model of the first policy step",
    )
    refresh_interval: int | None = Field(
        None,
        ge=1,
        description="policy steps after which the reference becomes the policy of that moment, again and again; by "
        "default never",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> ReferenceConfig:
        if self.path is not None and self.refresh_interval is not None:
            raise ValueError(
                "path and refresh_interval exclude each other: a refreshed reference is the policy of a moment"
            )
        return self


class TeacherConfig(BaseModel):
    """A model that the policy learns from on its own answers: on-policy distillation."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        description="a Hugging Face folder of a model with the policy's tokenizer, of any size and of any family that "
        "can be trained. The trainer's ranks hold it beside the policy, split in the same way"
    )
    coef: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="weight of the teacher: each token's advantage gets coef * (log q - log p_old), with the teacher q",
    )


class Taught(BaseModel):
    """What a rollout worker reads of the section `algorithm`."""

    model_config = ConfigDict(extra="ignore")

    teacher: TeacherConfig | None = None


class EvalFigure(BaseModel):
    """A figure of an evaluation set (docs/evaluation.md): of the first set its mean reward, unless another is named."""

    model_config = ConfigDict(extra="forbid")

    set: str | None = Field(None, description="name of the evaluation set; by default the first")
    metric: str = Field(
        "reward", description="the set's figure, of which more is better: reward, pass@k, best@n or maj@n"
    )


class EarlyStopConfig(EvalFigure):
    """Ends the training, with success, once evaluations no longer get better."""

    patience: int = Field(
        ge=1,
        description="evaluations of the set in a row that may bring no new best; after them the training ends",
    )
    min_delta: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="how much above the best so far a new best must be"
    )


# The keys of a recipe without a policy stage, and what stands in place of those that are required with one.
_WITHOUT_POLICY = ("stages", "seed")
_UNUSED = {"steps": 1, "prompts_per_step": 1, "samples_per_prompt": 2}


def generates(algorithm: Mapping[str, Any]) -> bool:
    """Whether a recipe's `algorithm` section, as it is in the file, has a policy stage."""
    stages = algorithm.get("stages")
    if not isinstance(stages, list) or not stages:
        return True
    # A kind that there is not may be meant to be the policy.
    return any(not isinstance(stage, dict) or stage.get("kind") not in ROW_KINDS for stage in stages)


def _policy_alone() -> list[Stage]:
    return [PolicyStage(kind="policy")]


class AlgorithmConfig(BaseModel):
    """The training algorithm: its losses, its batch size and its limit on staleness."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(
        ge=1,
        description="the number of steps of the policy stage; each trains on one batch and makes one weight version",
    )
    prompts_per_step: int = Field(ge=1, description="the number of prompt groups in each step")
    samples_per_prompt: int = Field(ge=1, description="the number of answers in each prompt group")
    mini_batches: int = Field(
        1,
        ge=1,
        description="into how many mini-batches of whole prompt groups a step's batch is split; each is one update of "
        "the optimizer",
    )
    epochs: int = Field(
        1,
        ge=1,
        description="how many times a step trains on its batch. A step takes mini_batches * epochs updates, which "
        "Megatron's learning-rate schedule counts; engines get the weights after the last",
    )
    seed: int = Field(1234, description="seed of the order of the rows and of each answer's sampling")
    mode: Literal["sync", "one_step_off", "fully_async"] = Field(
        "sync",
        description="how far generation and training overlap. sync: they take turns. one_step_off: the engines "
        "generate the next step's groups while the trainer trains on this one's. fully_async: the engines generate "
        "without pause, within max_staleness, and groups are trained on as they finish",
    )
    max_staleness: int | None = Field(
        None,
        ge=0,
        description="how many weight versions old a group may be when it is trained on; by default 0 in mode sync, "
        "1 in one_step_off and 4 in fully_async",
    )
    advantage: str = Field(
        "verst.runtime.algorithms.advantages:group_normalised",
        description="dotted path to the advantage function of a step's prompt groups, "
        "`fn(groups: Sequence[GroupMeta]) -> list[list[float]]`",
    )
    pass_k: int = Field(
        2,
        ge=2,
        description="the advantage pass_at_k: it raises the expected best reward of this many answers to a prompt",
    )
    score_weights: dict[str, FiniteFloat] | None = Field(
        None,
        min_length=1,
        description="the advantage decoupled: the weight of each part of the reward's `Score`; null: 1 for every part",
    )
    advantage_whiten: bool = Field(
        False,
        description="normalise the advantages of a step: subtract their mean and divide by their standard deviation, "
        "over the trained tokens of all its samples; after the advantage function",
    )
    advantage_clip: float | None = Field(
        None, gt=0, description="keep each advantage within plus and minus this, after whitening; null: off"
    )
    logprob_filter: str | None = Field(
        None,
        description="dotted path to a function that says which samples of a step are trained on, once the trainer has "
        "computed their log-probabilities, `fn(step: ScoredStep) -> list`; that takes a forward pass of the policy "
        "before the step. None unless given",
    )
    critic: CriticConfig | None = Field(
        None,
        description="PPO's critic, for the advantage gae: its values make an advantage for each token of each answer's "
        "reward, which is at the answer's last trained token; none unless given",
    )
    loss: str = Field(
        "verst.runtime.algorithms.losses:grpo",
        description="dotted path to a per-token policy loss, `fn(batch: TokenBatch) -> TokenLoss`",
    )
    loss_average: Annotated[Average | str, BeforeValidator(known_average)] = Field(
        "token",
        description="token: the mean over all trained tokens of the step; sample: the mean over samples, of each "
        "sample's mean over its tokens; samples without a trained token are left out of it; episode: the same over "
        "episodes, where a generate function returns several samples of one; constant: the sum over tokens, divided by "
        "samples times `rollout.sampling.max_new_tokens` (Dr. GRPO). Or the dotted path of a function of your own, "
        "`fn(call: AverageCall) -> list[list[float]]`, which returns the weight of each trained token of each sample",
    )
    skip_zero_advantage: bool = Field(
        False,
        description="leave out samples with an advantage of zero (all rewards of the group are equal): the gradient is "
        "the same and the step is shorter; cannot be combined with a KL or entropy term, which trains on them",
    )
    clip_low: float = Field(
        0.2,
        ge=0,
        description="the policy ratio is clipped below 1 - clip_low. gmpo clips the log-ratio below -clip_low; "
        "dppo bounds the fall of a token's probability",
    )
    clip_high: float = Field(
        0.2,
        ge=0,
        description="the policy ratio is clipped above 1 + clip_high. gmpo clips the log-ratio above clip_high; "
        "dppo bounds the rise of a token's probability",
    )
    clip_ratio_c: float | None = Field(
        None,
        gt=1,
        description="dual clip: for tokens with a negative advantage the loss is bounded at this policy ratio, and "
        "beyond it there is no gradient; null: off",
    )
    sapo_tau_positive: float = Field(
        1.0, gt=0, description="the loss sapo: how fast its gate fades for tokens with a positive advantage"
    )
    sapo_tau_negative: float = Field(1.05, gt=0, description="the same for other tokens")
    cov_share: float = Field(
        2e-4,
        gt=0,
        le=1,
        description="the losses clip_cov and kl_cov: the share of an update's tokens that they treat apart, rounded "
        "down to whole tokens. The paper has 2e-4, and 2e-3 for kl_cov with models of 7B",
    )
    cov_low: float = Field(
        1.0,
        allow_inf_nan=False,
        description="the loss clip_cov: it draws among tokens whose covariance is above this",
    )
    cov_high: float = Field(5.0, allow_inf_nan=False, description="the same: and below this")
    cov_kl_coef: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="the loss kl_cov: weight of its penalty on the tokens with the highest covariance",
    )
    correction: str | None = Field(
        None,
        description="dotted path to a function that corrects each token's loss for a rollout policy that differs from "
        "the old policy, `fn(batch: TokenBatch) -> Tensor`; bundled ones are in "
        "`runtime/algorithms/corrections.py`; none unless given",
    )
    correction_low: float = Field(
        0.0, ge=0, description="lower bound of the bundled corrections' importance ratio"
    )
    correction_high: float = Field(
        2.0, gt=0, description="upper bound of the bundled corrections' importance ratio"
    )
    correction_veto: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the bundled corrections leave out a whole answer with a token whose importance ratio is below "
        "this, such as 1e-4; null: none",
    )
    kl_coef: float = Field(
        0.0,
        ge=0,
        description="weight of the KL divergence from the reference model, which is the model of the first policy "
        "step: `model.path`, or what the stages before made of it, unless `reference` says otherwise; "
        "with 0 there is none",
    )
    kl: str = Field(
        "verst.runtime.algorithms.divergences:k3",
        description="dotted path to the estimate of that divergence at each token, "
        "`fn(logprobs: Tensor, other: Tensor) -> Tensor`; bundled ones are in `runtime/algorithms/divergences.py`",
    )
    kl_in: Literal["loss", "reward"] = Field(
        "loss",
        description="where the divergence counts. loss: a term of the loss. reward: before the advantages are "
        "computed, each answer's reward loses kl_coef times the divergence summed over its trained tokens, between the "
        "old policy and the reference; that takes a forward pass of the policy before the step. With a critic each "
        "token's reward loses its own",
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="the mean divergence (k3) per trained token, in nats, at which kl_coef is held by adapting it "
        "after each step (arXiv:1909.08593, section 2.2); null: kl_coef is fixed",
    )
    kl_horizon: int = Field(
        10_000,
        ge=1,
        description="how fast kl_coef is adapted: in so many samples it changes by the relative error, which is at "
        "most 20 %",
    )
    reference: ReferenceConfig = Field(
        ReferenceConfig(), description="which model the reference is; with kl_coef 0 there is none"
    )
    teacher: TeacherConfig | None = Field(
        None,
        description="a teacher whose log-probabilities of the policy's own tokens are added to the advantages, which "
        "lowers the reverse KL divergence from it; none unless given. Without a reward the teacher alone decides",
    )
    kl_importance: bool = Field(
        False,
        description="multiply the divergence by the policy ratio, with its gradient: in expectation the gradient of k1 "
        "and k3 is then that of the divergence from the reference itself, also for tokens of older weights",
    )
    entropy_coef: float = Field(
        0.0, description="weight of the entropy bonus, which is subtracted from the loss"
    )
    imitation_coef: float = Field(
        0.0,
        ge=0,
        description="weight of the negative log-likelihood of the step's good answers, the mean over their tokens, "
        "which is added to the loss (VAPO, arXiv:2504.05118); 0: off",
    )
    imitation_reward: float = Field(
        1.0, description="answers with at least this reward are good ones for imitation_coef"
    )
    routing_replay: RoutingReplayMode = Field(
        "off",
        description="which routing a mixture-of-experts model trains on. rollout (or true): the engine's (R3). "
        "trainer: the trainer's own, from a forward pass before the step (R2). off (or false): routers choose freely",
    )
    routing_probe_interval: int = Field(
        1,
        ge=0,
        description="steps between measurements of the effect of replay, each an extra forward pass, without replay, "
        "of one micro-batch; 0: never",
    )
    stages: list[Stage] = Field(
        default_factory=_policy_alone,
        min_length=1,
        description="the parts of the run, one after another; by default the policy stage alone. Without that one, "
        "nothing is generated: the run needs no other key here but seed, and no `rollout`",
    )
    early_stop: EarlyStopConfig | None = Field(
        None, description="ends the training once evaluations no longer get better; none unless given"
    )

    @model_validator(mode="before")
    @classmethod
    def _keys_of_the_policy_stage(cls, given: Any) -> Any:
        """Without a policy stage its keys are not required, and are refused: nothing would use them."""
        if not isinstance(given, dict) or generates(given):
            return given
        if of_policy := sorted(set(given) - set(_WITHOUT_POLICY)):
            raise ValueError(
                f"{', '.join(of_policy)} {'has' if len(of_policy) == 1 else 'have'} no effect, because no stage is of "
                "kind policy: leave out all keys but stages and seed, or add `{kind: policy}` as the last stage"
            )
        return {**given, **_UNUSED}

    @model_validator(mode="after")
    def _policy_comes_last(self) -> AlgorithmConfig:
        kinds = [stage.kind for stage in self.stages]
        if "policy" in kinds[:-1]:
            raise ValueError(f"stages are {', '.join(kinds)}: only the last one can be of kind policy")
        return self

    @model_validator(mode="after")
    def _reward_models_are_trained_apart(self) -> AlgorithmConfig:
        kinds = [stage.kind for stage in self.stages]
        if self.trains_reward_model and set(kinds) != {"reward_model"}:
            raise ValueError(
                f"stages are {', '.join(kinds)}: a reward model has a score in place of the logits, which the other "
                "stages need. Give stages of kind reward_model a run of their own; its model.path may be the export "
                "of another run"
            )
        return self

    @model_validator(mode="after")
    def _options_have_a_use(self) -> AlgorithmConfig:
        refuse_options_without_use(self)
        return self

    def resolved(self) -> dict[str, Any]:
        """The section as plain data with its defaults, but without keys that have no effect."""
        whole = self.model_dump(mode="json")
        return whole if self.generates else {key: whole[key] for key in _WITHOUT_POLICY}

    @property
    def generates(self) -> bool:
        """Whether any stage trains on what engines generate."""
        return self.stages[-1].kind == "policy"

    @property
    def trains_reward_model(self) -> bool:
        """Whether the model that is trained has a score in place of its logits. Then all stages are of that kind."""
        return any(isinstance(stage, RewardModelStage) for stage in self.stages)

    @property
    def policy_steps(self) -> int:
        """The number of steps of the policy stage."""
        return self.steps if self.generates else 0

    @property
    def spans(self) -> list[Span]:
        """The stages with rows of their own, in order, each with the weight versions that it trains."""
        spans: list[Span] = []
        for number, stage in enumerate(self.stages):
            if not isinstance(stage, PolicyStage):
                spans.append(Span(number, stage, spans[-1].end if spans else 0))
        return spans

    @property
    def offline_steps(self) -> int:
        """The number of steps before the policy stage, which need no engine."""
        return self.spans[-1].end if self.spans else 0

    @property
    def last_version(self) -> int:
        """The weight version that the last step of the run makes."""
        return self.offline_steps + self.policy_steps

    @property
    def updates(self) -> int:
        """How many updates of the policy the run takes."""
        trained = self.policy_steps - (self.critic.warmup_steps if self.critic is not None else 0)
        return self.offline_steps + trained * self.updates_per_step

    @property
    def critic_updates(self) -> int:
        """How many updates of the critic the run takes."""
        return self.policy_steps * self.updates_per_step if self.critic is not None else 0

    def warms_up(self, version: int) -> bool:
        """Whether the step that trains this version trains the critic alone."""
        return self.critic is not None and 0 <= version - self.offline_steps < self.critic.warmup_steps

    @property
    def named_average(self) -> Average:
        """The average of the loss; with a function of the recipe's own `token`, whose weights that one replaces."""
        return next((name for name in AVERAGES if name == self.loss_average), "token")

    @property
    def own_average(self) -> str | None:
        """The dotted path of the recipe's own average; None if it names one."""
        return None if self.loss_average in AVERAGES else self.loss_average

    @property
    def updates_per_step(self) -> int:
        """How many updates of the optimizer a policy step takes."""
        return self.mini_batches * self.epochs

    @property
    def staleness(self) -> int:
        """How many weight versions old a group may be when it is trained on."""
        if self.max_staleness is not None:
            return self.max_staleness
        return {"sync": 0, "one_step_off": 1, "fully_async": 4}[self.mode]

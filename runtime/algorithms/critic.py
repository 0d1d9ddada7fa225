"""The critic of PPO in the recipe's `algorithm` section."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from verst.runtime.messages.model_config import ArgumentValue

# Megatron's options that a critic may set otherwise than the policy. All others are those of trainer.megatron.
OPTIMIZER_OPTIONS = (
    "adam-beta1", "adam-beta2", "adam-eps", "clip-grad", "lr-decay-iters", "lr-decay-style", "lr-warmup-fraction",
    "lr-warmup-init", "lr-warmup-iters", "min-lr", "weight-decay",
)  # fmt: skip


class CriticConfig(BaseModel):
    """PPO's critic: a second model of the policy's architecture on the trainer's ranks, in the same parallel layout.

    In place of the logits it has one value for each token.
    """

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(
        None,
        description="a Hugging Face folder with weights for the model of model.path, with which the critic starts; by "
        "default those of model.path. The value head starts at zero, so all values do",
    )
    lr: float = Field(1e-5, gt=0, description="the critic's learning rate")
    optimizer: dict[str, ArgumentValue] = Field(
        default_factory=dict,
        description="Megatron's options of the optimizer and its schedule that the critic sets otherwise than "
        "trainer.megatron, such as `{weight-decay: 0.0, lr-warmup-iters: 20}`: "
        + ", ".join(OPTIMIZER_OPTIONS),
    )
    gamma: float = Field(1.0, gt=0, le=1, description="the discount of what follows, by trained token")
    lam: float = Field(
        1.0,
        ge=0,
        le=1,
        description="lambda of the advantages (GAE, arXiv:1506.02438). 1: the return less the value; below 1 the "
        "values count more and the advantages vary less",
    )
    value_lam: float | None = Field(
        None, ge=0, le=1, description="lambda of what the critic is trained towards; by default lam"
    )
    value_clip: float | None = Field(
        0.2,
        gt=0,
        description="how far a step moves a value before the loss stops to pull it on; null: no bound. Rewards of a "
        "larger scale than 1 need a larger one",
    )
    warmup_steps: int = Field(
        0,
        ge=0,
        description="the first policy steps that train the critic alone; the policy keeps its weights",
    )

    @field_validator("optimizer")
    @classmethod
    def _options_of_the_optimizer(cls, given: dict[str, ArgumentValue]) -> dict[str, ArgumentValue]:
        if "lr" in given:
            raise ValueError("has lr, which has a key of its own: critic.lr")
        if unknown := sorted(set(given) - set(OPTIMIZER_OPTIONS)):
            raise ValueError(
                f"has {', '.join(unknown)}, which is no option of its own: the critic takes all others from "
                f"trainer.megatron; it may set {', '.join(OPTIMIZER_OPTIONS)}"
            )
        return given

    def arguments(self, policy: dict[str, ArgumentValue]) -> dict[str, ArgumentValue]:
        """The critic's Megatron arguments, out of those of the policy."""
        return {**policy, "lr": self.lr, **self.optimizer}

    @property
    def target_lam(self) -> float:
        """Lambda of the critic's targets."""
        return self.lam if self.value_lam is None else self.value_lam

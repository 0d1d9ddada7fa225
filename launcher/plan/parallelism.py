"""Where each trainer rank stands in Megatron's grid, from the recipe's arguments alone.

The same arithmetic as megatron.core.parallel_state (its default order tp-cp-ep-dp-pp: tensor-parallel
ranks are neighbours, pipeline stages furthest apart), without starting a process group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from verst.runtime.messages.model_config import ArgumentValue

DATA_PARALLEL_SIZE = ("dp-size", "data-parallel-size", "dp")  # SGLang's names for it


@dataclass(frozen=True)
class Parallelism:
    """Sizes of the grid. `world` need not be divisible by them: `faults` says so."""

    world: int
    tp: int = 1
    cp: int = 1
    pp: int = 1
    ep: int = 1
    etp: int = 1
    pp_before_dp: bool = False  # Megatron's use-tp-pp-dp-mapping

    @property
    def dp(self) -> int:
        """Data-parallel size: ranks over the size of one model copy."""
        return max(1, self.world // (self.tp * self.cp * self.pp))

    def faults(self) -> list[str]:
        """What does not divide, in words."""
        faults = []
        dense, expert = self.tp * self.cp * self.pp, self.etp * self.ep * self.pp
        if self.world % dense:
            faults.append(
                f"{self.world} ranks (trainer.nodes x trainer.ranks_per_node) cannot be cut into model copies of "
                f"{dense} (tensor {self.tp} x context {self.cp} x pipeline {self.pp}); "
                f"the ranks must be a multiple of {dense}"
            )
        elif self.world % expert:
            faults.append(
                f"{self.world} ranks (trainer.nodes x trainer.ranks_per_node) cannot be cut into "
                f"{expert} (expert-tensor {self.etp} x expert {self.ep} x pipeline {self.pp}); "
                f"the ranks must be a multiple of {expert}"
            )
        return faults

    def coordinates(self, rank: int) -> dict[str, int]:
        """{"tp": 0, "cp": 0, "dp": 1, "pp": 0, "ep": 1}: the rank's index in each dimension."""
        tp, rest = rank % self.tp, rank // self.tp
        cp, rest = rest % self.cp, rest // self.cp
        dp, pp = (rest // self.pp, rest % self.pp) if self.pp_before_dp else (rest % self.dp, rest // self.dp)
        # The expert grid covers the same stage: its own order is etp, ep, expert-dp within a stage.
        in_stage = tp + self.tp * (cp + self.cp * dp)
        return {"tp": tp, "cp": cp, "dp": dp, "pp": pp, "ep": in_stage // self.etp % self.ep}


def megatron_parallelism(arguments: Mapping[str, ArgumentValue], world: int) -> Parallelism:
    """The grid that `trainer.megatron` describes."""
    tp = size(arguments, "tensor-model-parallel-size")
    return Parallelism(
        world=world,
        tp=tp,
        cp=size(arguments, "context-parallel-size"),
        pp=size(arguments, "pipeline-model-parallel-size"),
        ep=size(arguments, "expert-model-parallel-size"),
        etp=size(arguments, "expert-tensor-parallel-size", default=tp),
        pp_before_dp=argument(arguments, "use-tp-pp-dp-mapping") is True,
    )


def engine_ranks(arguments: Mapping[str, ArgumentValue]) -> int:
    """Processes (GPUs) of one SGLang engine: its tensor x pipeline parallel size."""
    return size(arguments, "tp-size", "tensor-parallel-size", "tp") * size(
        arguments, "pp-size", "pipeline-parallel-size", "pp"
    )


def attention_groups(arguments: Mapping[str, ArgumentValue]) -> int:
    """The groups of an SGLang engine's ranks that each have the attention whole: more than one with
    `enable-dp-attention`."""
    if argument(arguments, "enable-dp-attention") is not True:
        return 1
    return size(arguments, *DATA_PARALLEL_SIZE)


def argument(arguments: Mapping[str, ArgumentValue], *names: str) -> ArgumentValue | None:
    """An argument under any of its names, with `-` or `_` between words."""
    plain = {key.replace("_", "-"): value for key, value in arguments.items()}
    return next((plain[name] for name in names if name in plain), None)


def size(arguments: Mapping[str, ArgumentValue], *names: str, default: int = 1) -> int:
    """A parallel size; what is not a positive integer counts as the default here, the parser complains of it."""
    value = argument(arguments, *names)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else default

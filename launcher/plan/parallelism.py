"""Computes parallel sizes, and each trainer rank's place in Megatron's grid, from the recipe's arguments.

The arithmetic is that of megatron.core.parallel_state with its default order tp-cp-ep-dp-pp (tensor-parallel
ranks are neighbours, pipeline stages are furthest apart). No process group is started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from verst.runtime.messages.model_config import ArgumentValue

DATA_PARALLEL_SIZE = ("dp-size", "data-parallel-size", "dp")  # SGLang's names for it


@dataclass(frozen=True)
class Parallelism:
    """The sizes of Megatron's grid of trainer ranks. `faults` reports sizes that do not divide `world`."""

    world: int
    tp: int = 1
    cp: int = 1
    pp: int = 1
    ep: int = 1
    etp: int = 1
    pp_before_dp: bool = False  # Megatron's use-tp-pp-dp-mapping

    @property
    def dp(self) -> int:
        """The data-parallel size: the number of ranks divided by the ranks of one model copy."""
        return max(1, self.world // (self.tp * self.cp * self.pp))

    def faults(self) -> list[str]:
        """A message for each product of sizes that does not divide the number of ranks."""
        faults = []
        dense, expert = self.tp * self.cp * self.pp, self.etp * self.ep * self.pp
        if self.world % dense:
            faults.append(
                f"{self.world} ranks (trainer.nodes x trainer.ranks_per_node) cannot be divided into model copies "
                f"of {dense} ranks (tensor {self.tp} x context {self.cp} x pipeline {self.pp}); "
                f"the number of ranks must be a multiple of {dense}"
            )
        elif self.world % expert:
            faults.append(
                f"{self.world} ranks (trainer.nodes x trainer.ranks_per_node) cannot be divided into groups "
                f"of {expert} ranks (expert-tensor {self.etp} x expert {self.ep} x pipeline {self.pp}); "
                f"the number of ranks must be a multiple of {expert}"
            )
        return faults

    def coordinates(self, rank: int) -> dict[str, int]:
        """The rank's index in each dimension: {"tp": 0, "cp": 0, "dp": 1, "pp": 0, "ep": 1}."""
        tp, rest = rank % self.tp, rank // self.tp
        cp, rest = rest % self.cp, rest // self.cp
        dp, pp = (rest // self.pp, rest % self.pp) if self.pp_before_dp else (rest % self.dp, rest // self.dp)
        # The expert grid covers the ranks of the same stage in its own order: etp, ep, expert-dp.
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
    """The number of ranks (GPUs) of one SGLang engine: tensor-parallel size x pipeline-parallel size."""
    return size(arguments, "tp-size", "tensor-parallel-size", "tp") * size(
        arguments, "pp-size", "pipeline-parallel-size", "pp"
    )


def attention_groups(arguments: Mapping[str, ArgumentValue]) -> int:
    """How many groups of an SGLang engine's ranks have a full copy of the attention: 1 without
    `enable-dp-attention`, else the data-parallel size."""
    if argument(arguments, "enable-dp-attention") is not True:
        return 1
    return size(arguments, *DATA_PARALLEL_SIZE)


def argument(arguments: Mapping[str, ArgumentValue], *names: str) -> ArgumentValue | None:
    """The value of an argument under any of its names, written with `-` or `_`; None if it is not given."""
    plain = {key.replace("_", "-"): value for key, value in arguments.items()}
    return next((plain[name] for name in names if name in plain), None)


def size(arguments: Mapping[str, ArgumentValue], *names: str, default: int = 1) -> int:
    """A parallel size. A value that is not a positive integer counts as the default; the parser reports it."""
    value = argument(arguments, *names)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else default

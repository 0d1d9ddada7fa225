"""Turns a trainer's state into Megatron's sharded tensors and back, in the same form for every layout.

The model's form is Megatron's own. The optimizer's form is built here: each parameter's state is under the
parameter's own key (`optimizer.state.{param,exp_avg,exp_avg_sq}.<parameter>`, fp32). So a checkpoint does not
record which of Megatron's optimizers holds a parameter, or how many optimizers are chained. Both depend on
the layout: only under expert parallelism do experts have an optimizer of their own. Megatron's own form
numbers the optimizers, so another layout cannot read it.

Two more faults of Megatron 0.19.2 with torch's Adam are worked around here. Loading needs moments that exist
before the first step, and `DistributedOptimizer` looks for a stored `step` of each parameter. Here the step
is one number for all parameters, in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")
_EXTRA = "._extra_state"


def metadata() -> dict[str, Any]:
    """The metadata that selects this form in Megatron's `sharded_state_dict` methods."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True),
    }


def sharded_model(chunks: Sequence[Any], prefix: str = "") -> dict[str, Any]:
    """Returns the model chunks (Megatron's modules, without DDP) as sharded tensors that alias their
    parameters. Their keys, and those of their optimizer's state, have the `prefix`.

    The layers' `_extra_state` is left out. Transformer Engine's layers and Megatron's own have it in
    different layers. It holds only the scaling history of FP8, which a few steps rebuild.
    """
    sharded = {
        f"model{i}": {
            name: value
            for name, value in chunk.sharded_state_dict(metadata=metadata()).items()
            if not name.endswith(_EXTRA)
        }
        for i, chunk in enumerate(chunks)
    }
    add_prefix_for_sharding(sharded, prefix)
    return sharded


def read_model(chunks: Sequence[torch.nn.Module], loaded: dict[str, Any]) -> None:
    """Copies loaded tensors, in the form of `sharded_model`, into the chunks.

    Raises ValueError when they do not fit.
    """
    for i, chunk in enumerate(chunks):
        keys = chunk.load_state_dict(loaded[f"model{i}"], strict=False)
        missing = [name for name in keys.missing_keys if not name.endswith(_EXTRA)]
        if missing or keys.unexpected_keys:
            raise ValueError(
                f"the checkpoint lacks {missing} and has unknown tensors: {keys.unexpected_keys}"
            )


def sharded_optimizer(optimizer: Any, model: dict[str, Any], loading: bool) -> dict[str, Any]:
    """Returns masters and moments of every parameter; `model` is the result of `sharded_model`. Collective.

    Raises ValueError for an optimizer other than Adam.
    """
    sharded: dict[str, Any] = {}
    for i, part in enumerate(_parts(optimizer)):
        _seed_moments(part)
        if isinstance(part, DistributedOptimizer):
            sharded[f"optimizer{i}"] = part.sharded_param_state_fully_reshardable(model, loading, metadata())
        else:
            by_tensor = {id(t.data): t for t in _sharded_tensors(model)}
            sharded[f"optimizer{i}"] = {
                j: {
                    key: make_sharded_optimizer_tensor(
                        by_tensor[id(parameter)], state, f"optimizer.state.{key}"
                    )
                    for key, state in states.items()
                }
                for j, (parameter, states) in enumerate(_whole_states(part))
            }
    return sharded


def sharded_reference(
    model: dict[str, Any], parameters: Sequence[torch.Tensor], copies: Sequence[torch.Tensor]
) -> dict[int, Any]:
    """Returns the reference policy's `copies` of the model's `parameters`, each under its parameter's own key.

    The key is `reference.<parameter>`; `model` is the result of `sharded_model`.
    """
    by_tensor = {t.data.data_ptr(): t for t in _sharded_tensors(model)}
    return {
        i: make_sharded_optimizer_tensor(by_tensor[parameter.data_ptr()], copy, "reference")
        for i, (parameter, copy) in enumerate(zip(parameters, copies, strict=True))
    }


@torch.no_grad()
def read_reference(copies: Sequence[torch.Tensor], loaded: dict[int, torch.Tensor]) -> None:
    """Copies loaded tensors, in the form of `sharded_reference`, into `copies`."""
    for i, copy in enumerate(copies):
        copy.copy_(loaded[i])


@torch.no_grad()
def read_optimizer(optimizer: Any, loaded: dict[str, Any], steps: int) -> None:
    """Copies loaded tensors, in the form of `sharded_optimizer`, into an optimizer after `steps` steps."""
    for i, part in enumerate(_parts(optimizer)):
        state = loaded[f"optimizer{i}"]
        if isinstance(part, DistributedOptimizer):
            for per_parameter in part.optimizer.state.values():
                per_parameter.pop("step", None)  # or Megatron looks for it among the loaded tensors
            part.load_parameter_state_from_fully_reshardable(state)
        else:
            for j, (_, states) in enumerate(_whole_states(part)):
                for key, tensor in states.items():
                    tensor.copy_(state[j][key])
        _set_steps(part.optimizer, steps)


def optimizer_steps(optimizer: Any) -> int:
    """The step count of Adam's bias correction, the same for all parameters."""
    for part in _parts(optimizer):
        inner = part.optimizer
        if isinstance(inner, torch.optim.Adam):
            for state in inner.state.values():
                return int(state["step"])
        else:
            return int(inner.param_groups[0].get("step", 0))
    return 0


def sharded_random_state(rank: int, world: int) -> dict[str, ShardedTensor]:
    """Returns this rank's random states as its part of all ranks' states.

    They are torch's, the device's, and those of Megatron's tracker.
    """
    return {
        name: ShardedTensor.from_rank_offsets(f"random.{name}", state.reshape(1, -1), (0, rank, world))
        for name, state in _random_states().items()
    }


def read_random_state(loaded: dict[str, torch.Tensor]) -> None:
    """Restores this rank's random states from the form of `sharded_random_state`."""
    states = {name: tensor.reshape(-1).cpu() for name, tensor in loaded.items()}
    torch.set_rng_state(states.pop("torch"))
    torch.cuda.set_rng_state(states.pop("device"))
    tensor_parallel.get_cuda_rng_tracker().set_states(
        {name.removeprefix("tracker."): state for name, state in states.items()}
    )


def _random_states() -> dict[str, torch.Tensor]:
    tracked = tensor_parallel.get_cuda_rng_tracker().get_states()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        **{f"tracker.{name}": state for name, state in tracked.items()},
    }


def _parts(optimizer: Any) -> list[Any]:
    """Returns the optimizers chained in Megatron's, or the single one, without those that have no parameters."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if not getattr(part, "is_stub_optimizer", False) and part.param_groups]


def _sharded_tensors(nested: Any) -> Iterator[ShardedTensor | ShardedTensorFactory]:
    if isinstance(nested, dict):
        for value in nested.values():
            yield from _sharded_tensors(value)
    elif isinstance(nested, ShardedTensor | ShardedTensorFactory):
        yield nested


def _whole_states(part: Any) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Yields each model parameter with its fp32 master and moments, for optimizers that hold them whole."""
    for parameter, master in _masters(part):
        state = part.optimizer.state[master]
        yield parameter, {"param": master.detach(), **{key: state[key] for key in _MOMENTS}}


def _masters(part: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    if isinstance(part, Float16OptimizerWithFloat16Params):
        for halves, masters in zip(part.float16_groups, part.fp32_from_float16_groups, strict=True):
            yield from zip(halves, masters, strict=True)
        for group in part.fp32_from_fp32_groups:
            yield from zip(group, group, strict=True)
    elif isinstance(part, FP32Optimizer):
        for group in part.optimizer.param_groups:
            yield from zip(group["params"], group["params"], strict=True)
    else:
        raise ValueError(f"cannot write a checkpoint of the optimizer {type(part).__name__}")


def _seed_moments(part: Any) -> None:
    """Gives every parameter the state that Adam creates in its first step."""
    inner = part.optimizer
    if not isinstance(inner, torch.optim.Adam):
        if "Adam" not in type(inner).__name__:
            raise ValueError(f"checkpoints hold Adam's state; this optimizer is a {type(inner).__name__}")
        part.init_state_fn(inner, part.config)  # Transformer Engine's or Apex's
        return
    for group in inner.param_groups:
        for parameter in group["params"]:
            state = inner.state[parameter]
            if not state:
                state.update({key: torch.zeros_like(parameter) for key in _MOMENTS})
                state["step"] = _step_tensor(group, parameter, 0)


def _set_steps(inner: Any, steps: int) -> None:
    for group in inner.param_groups:
        if isinstance(inner, torch.optim.Adam):
            for parameter in group["params"]:
                inner.state[parameter]["step"] = _step_tensor(group, parameter, steps)
        elif steps:
            group["step"] = steps


def _step_tensor(group: dict[str, Any], parameter: torch.Tensor, steps: int) -> torch.Tensor:
    """Adam's step counter, on the device where its kernel needs it (torch.optim.Adam._init_group)."""
    on_device = group["capturable"] or group["fused"]
    return torch.tensor(float(steps), dtype=torch.float32, device=parameter.device if on_device else "cpu")

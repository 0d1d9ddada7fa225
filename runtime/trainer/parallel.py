"""A rank's place in the Megatron world: its process groups and its coordinates in them."""

from __future__ import annotations

import argparse
import datetime

import torch
import torch.distributed as dist


class Parallel:
    """Holds rank and world size; `split` adds Megatron's coordinates, in its default order tp-cp-ep-dp-pp.

    `dp` counts data-parallel replicas of the dense layers. A micro-batch belongs to one replica, and each of
    its sequences is spread over that replica's `cp` ranks.
    """

    tp_rank: int
    tp_size: int
    cp_rank: int
    cp_size: int
    dp_rank: int
    dp_size: int
    cp_group: dist.ProcessGroup
    # Ranks of this place in a tensor and a stage: together they have every token once.
    dp_cp_group: dist.ProcessGroup
    pp_rank: int
    pp_size: int
    ep_rank: int
    ep_size: int
    etp_rank: int
    etp_size: int

    def __init__(
        self,
        rank: int,
        world_size: int,
        store: dist.Store,
        *,
        backend: str = "gloo",
        timeout_s: float = 600.0,
        local_rank: int = 0,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.backend = backend
        self.timeout = datetime.timedelta(seconds=timeout_s)
        self.store = store
        self.device = torch.device("cuda", local_rank) if backend == "nccl" else torch.device("cpu")

    def connect(self) -> None:
        """Joins the torch.distributed world; waits for the other ranks until the timeout."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            self.backend, store=self.store, rank=self.rank, world_size=self.world_size, timeout=self.timeout
        )

    def split(self, args: argparse.Namespace) -> None:
        """Creates the process groups that Megatron's arguments ask for. Collective over the world."""
        from megatron.core import parallel_state as mpu

        if not dist.is_initialized():
            self.connect()
        mpu.initialize_model_parallel(
            tensor_model_parallel_size=args.tensor_model_parallel_size,
            pipeline_model_parallel_size=args.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=args.virtual_pipeline_model_parallel_size,
            context_parallel_size=args.context_parallel_size,
            hierarchical_context_parallel_sizes=args.hierarchical_context_parallel_sizes,
            expert_model_parallel_size=args.expert_model_parallel_size,
            expert_tensor_parallel_size=args.expert_tensor_parallel_size,
            num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
            nccl_communicator_config_path=args.nccl_communicator_config_path,
            distributed_timeout_minutes=max(1, round(self.timeout.total_seconds() / 60)),
            create_gloo_process_groups=args.use_gloo_process_groups,
        )
        self.tp_rank, self.tp_size = (
            mpu.get_tensor_model_parallel_rank(),
            mpu.get_tensor_model_parallel_world_size(),
        )
        self.cp_rank, self.cp_size = mpu.get_context_parallel_rank(), mpu.get_context_parallel_world_size()
        self.cp_group = mpu.get_context_parallel_group()
        self.dp_cp_group = mpu.get_data_parallel_group(with_context_parallel=True)
        self.dp_rank, self.dp_size = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
        self.pp_rank, self.pp_size = (
            mpu.get_pipeline_model_parallel_rank(),
            mpu.get_pipeline_model_parallel_world_size(),
        )
        self.ep_rank, self.ep_size = (
            mpu.get_expert_model_parallel_rank(),
            mpu.get_expert_model_parallel_world_size(),
        )
        self.etp_rank, self.etp_size = (
            mpu.get_expert_tensor_parallel_rank(),
            mpu.get_expert_tensor_parallel_world_size(),
        )

    def close(self) -> None:
        """Destroys Megatron's process groups and leaves the world."""
        from megatron.core import parallel_state as mpu

        mpu.destroy_model_parallel()
        dist.destroy_process_group()

    def world_sum(self, value: float) -> float:
        """Returns the sum of all ranks' values, on every rank. Collective over the world."""
        total = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item()

    def world_max(self, value: float) -> float:
        """Returns the largest of all ranks' values, on every rank. Collective over the world."""
        largest = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.item()

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank is in the last pipeline stage, which computes log-probabilities and losses."""
        return self.pp_rank == self.pp_size - 1

    @property
    def is_model_parallel_source(self) -> bool:
        """True on one rank of each data-parallel replica.

        That rank fetches the replica's samples and passes them on.
        """
        return self.tp_rank == self.cp_rank == self.pp_rank == 0

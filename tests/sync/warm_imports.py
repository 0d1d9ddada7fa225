"""What the processes of every Megatron world import; the server that they are forked from does it once."""

import gc
import os

os.environ["CUDA_VISIBLE_DEVICES"] = (
    ""  # before torch looks; a process that has touched a GPU cannot be forked
)

from verst.runtime.trainer.model import cpu_adapter

cpu_adapter.apply()

import torch
import transformers.models.llama.modeling_llama
import transformers.models.qwen3.modeling_qwen3
import transformers.models.qwen3_moe.modeling_qwen3_moe  # noqa: F401

import verst.runtime.trainer.checkpoint.checkpoint
import verst.runtime.trainer.trainer
import verst.sync.hf.export
import verst.sync.links.gather  # noqa: F401

torch.set_num_threads(1)

# A full collection in a process forked from here then passes over these 600,000 objects, which takes it 0.4 s.
gc.collect()
gc.freeze()

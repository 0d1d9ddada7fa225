"""How state crosses between trainer and rollout: weights and routing replay. Imports torch, nothing of ours.

Weights, from the table outwards: `mapping` (one table per architecture family), `layout` (which rank holds
which block, pure), `binding` (a layout tied to a real model), `hf_folder` (import), `gather` (whole tensors,
bucket by bucket, to trainer rank 0), `hf_export` (to a Hugging Face folder), `broadcast` (to an engine).
"""

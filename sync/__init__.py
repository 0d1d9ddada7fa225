"""How state crosses between trainer and rollout: weights and routing replay. Imports torch, nothing of ours.

Weights, from the table outwards: `mapping` (one table per architecture family), `layout` (which rank holds
which block, pure), `binding` (a layout tied to a real model), `hf_folder` (import), `gather` (whole tensors,
bucket by bucket, to trainer rank 0), `hf_export` (to a Hugging Face folder), `broadcast` (to an engine).

Weights as blocks, from each rank to each: `blocks` (what a rank holds), `load_trace` (what an engine does), `plan`
(who sends what to whom), `schedule` (what one rank does), `exchange` (does it), `block_link` (a trainer rank's end),
`groups` (process groups that never wait for ever), `checksum`.

What an engine wants them in: `formats`; a folder in one, converted: `convert`, which reads through `stored_model` and
writes through `shard_file`; a trainer's tensors, converted on their way to an engine: `engine_format`.

Versions of them in a folder: `disk`, `disk_writer`, `disk_reader`, `disk_removal`; what changed from one to the next:
`delta`. One version after another into a folder: `version_sender`; out of it to a copy on a node: `local_copy`.
"""

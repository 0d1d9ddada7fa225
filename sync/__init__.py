"""How state crosses between trainer and engines: weights, and the choices for routing replay.

It imports torch, and nothing else of Verst. `docs/weights.md` describes the whole path.

- `layout/`: which rank holds which blocks of which tensors, and the plan for sending them. Pure.
- `formats/`: the weight formats of engines (FP8, NVFP4, INT4, …) as pure functions of a tensor.
- `wire/`: messages with deadlines between ranks, and the exchange of blocks over them.
- `links/`: ways to bring a trainer's weights to engines: blocks, broadcasts, converted tensors.
- `files/`: durable files, safetensors files and checksums of tensors.
- `versions/`: weight versions in a folder: write, publish, read, remove; deltas between them.
- `hf/`: Hugging Face folders: import, export and conversion to another format.
- `replay/`: the engine's routed experts and sparse attention's choices in few bytes.
- `config.py`: the recipe's `weights` section.
"""

"""The code that runs inside SGLang's processes, which load it through SGLang's plug-in entry point (`plugin.py`).

- `orders.py`: the worker's orders to SGLang's scheduler, and the answers.
- `weights.py`: obeys them when new weights arrive, and separates versions in the prefix cache.
- `blocks.py`, `second_buffer.py`, `versions.py`: receive weights as blocks, into a second buffer, or from a folder.
- `repacks.py`, `weight_compare.py`: check that parameters are as loaded, and that they equal the trainer's.
- `sampling.py`: a seed per request.
- `routing.py`, `prefixes.py`: the experts that each token was computed with, also for cached prefixes.
- `groups.py`: several data-parallel groups in one engine.
- `cpu.py`, `cpu_stubs/`: engines on machines without a GPU.
"""

"""Saves and restores the whole trainer, under any parallel layout.

Open `checkpoint.py` for saving and loading: folders, asynchronous writers and failures. `state.py` turns the
model, the optimizer and the random states into Megatron's sharded tensors and back.
"""

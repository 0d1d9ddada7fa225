"""Saves and restores the whole trainer, under any parallel layout.

Open `checkpoint.py` for saving and loading: folders, asynchronous writers and failures. `state.py` turns the
model, the optimizer and the random states into Megatron's sharded tensors and back. `export.py` writes the model of
a checkpoint as a Hugging Face folder without Megatron, with the tensors that `stored.py` reads.
"""

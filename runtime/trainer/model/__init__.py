"""Builds one rank's part of the Megatron model, with its optimizer.

Open `trained_model.py` for the whole: weights from a checkpoint's folder, optimizer and schedule.
`arguments/` turns a recipe into Megatron's arguments, `model.py` chooses the model class and the layers'
modules, and `optimizer.py` builds the optimizer and the learning-rate schedule.

Verst's own layers are in `attention.py` (core attention without Transformer Engine), `latent_attention.py`
(MLA) and `sparse_attention.py` (DeepSeek's sparse attention). `replayed_routing.py` replays the choice of
experts in one router, and `replayed_selection.py` the choice of attended tokens in one layer.
`cpu_adapter.py` lets Megatron run without a GPU.
"""

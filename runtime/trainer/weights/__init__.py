"""Sends the trainer's weights to the engines, in rounds that the controller starts.

Open `weight_sync.py` first: it runs a round with the transport that the recipe names. `block_transport.py`
sends blocks straight into the engines' parameters (`reshard`), `tensor_transport.py` broadcasts whole tensors
(`broadcast`, and `weights.check` under every transport), `folder_transport.py` writes versions to a folder
(`disk`, `delta`). `source_round.py` is rank 0's side of a round: calls to the engines, and which engines
failed.
"""

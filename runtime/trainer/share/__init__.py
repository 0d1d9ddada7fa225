"""Brings each rank its share of a step's samples, and makes tensors of it.

Open `fetch.py` first: it gets the samples from the store shards and passes them on within a data-parallel
replica. `routing.py` and `selection.py` say which part of the engine's routing and of its sparse attention's
choices a rank needs, and cut that part out. `spreader.py` sends the parts. `batch.py` collates samples into
padded micro-batches.
"""

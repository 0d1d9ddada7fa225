"""Keeps finished prompt groups until they are trained on, safely on disk.

`shard.py` is a store shard, the process that takes in and serves groups. `journal.py` keeps them on disk.
`recording.py` reads what a run kept for good, and `config.py` is the recipe's `record` section.
"""

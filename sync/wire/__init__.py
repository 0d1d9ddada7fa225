"""Messages between trainer ranks and an engine's ranks, with a deadline on every wait.

`groups.py` makes process groups that can be abandoned. `wire.py` sends messages over gloo or NCCL, and `shared_wire.py`
through memory that both processes map (`shared_memory.py`). `exchange.py` runs a rank's schedule over either of them,
with the checksums of `checksum.py` (`checksum_triton.py` on a GPU).
"""

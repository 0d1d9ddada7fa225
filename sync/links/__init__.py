"""The ways of bringing a trainer's weights to engines, seen from the trainer's ranks.

`block_link.py` sends blocks from each trainer rank to each engine rank. `broadcast.py` sends whole tensors from trainer
rank 0 to engines, and `gather.py` assembles them on that rank. `whole_share.py` divides whole tensors among all trainer
ranks, to be converted (`converted_share.py`) or written. `engine_format.py` converts tensors to an engine's format.
`outcomes.py` raises one rank's error on all ranks.
"""

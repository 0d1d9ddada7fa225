"""Faults of a model folder, and of the arguments for Megatron and SGLang.

`model_files.py` reads the headers of the weights. `arguments.py` starts `parsers.py`, a program that asks both parsers,
`engine_format.py` (weights that an engine converts) and `served_model.py` (a folder of the engines' own).
"""

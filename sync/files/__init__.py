"""Files of weights: `durable.py` writes so that a crash cannot undo it, `shard_file.py` writes and checks safetensors
files piece by piece, and `tensor_checksum.py` computes checksums of tensors.
"""

"""Weight versions in a folder that all nodes see, for the transports `disk` and `delta`.

`folder.py` defines the names and the index. `writer.py` writes and publishes one version, `sender.py` one after
another. `reader.py` reads a version and verifies it, and `local_copy.py` keeps a copy of one on an engine's node.
`delta.py` computes the changes of a tensor. `removal.py` removes old versions, except those that readers hold
(`leases.py`).
"""

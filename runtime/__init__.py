"""What runs on the nodes: actors, node agent, controller, trainer, rollout, algorithms, sample stream.

`docs/architecture.md` is the map. Imports `verst.sync` and nothing else of ours.
"""

"""Sends a run's figures to metric trackers, and records traces of what its processes do.

`config.py` is the recipe's `metrics` and `logs` sections. `trackers.py` starts the trackers that the recipe
names, each from its own file (`tensorboard.py`, `wandb.py`, `mlflow.py`, `prometheus.py`), and `sinks.py`
feeds them without ever delaying the run. `trace.py` writes spans of time for `verst trace`.
"""

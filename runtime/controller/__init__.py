"""The controller: dataset cursor, staleness, batch plan, weight rounds, checkpoints, evaluation.

`state.py` decides (pure: events in, commands out), `shell.py` does (actor calls, files, time).
"""

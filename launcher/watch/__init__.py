"""Views of a run: status, live views, logs, traces and the dashboard.

They read only the run folder (`verst status` also asks Slurm), so they work during and after the run, on any
machine that can read the folder. `progress.py` computes a run's progress, and `view.py` draws it for `verst
run`, `status.py` and `top.py`, with `curve.py` for the reward curve. `actors_status.py` shows an app of
actors. `logs.py` and `log_files.py` read logs, `trace.py` and `trace_clocks.py` merge traces, and `dash.py`
starts the dashboard.
"""

"""What people see of a step: its figures, its bottleneck, and a few of its samples.

`measure.py` collects a step's figures, `critical_path.py` finds what the step waited for, `reporting.py` sends the
figures to files and trackers, and `shown.py` writes samples token by token.
"""

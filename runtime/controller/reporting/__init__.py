"""What people see of a step: its figures, its bottleneck, and a few of its samples.

`measure.py` collects a step's figures, with `rewards.py` for how its rewards are spread,
`own_figures.py` for what hooks report, and `critical_path.py` for
what it waited for. `reporting.py` sends the figures to files and trackers, and `shown.py` writes samples token by
token.
"""

"""Runs on this machine, started through torchx.

`commands.py` implements `verst run` and `verst resume`. `launch.py` starts the node agents and watches them
until the run ends, `app.py` describes the run to torchx, and `tether.py` makes an agent end with its
launcher. `component.py` is for those who start runs with `torchx run`.
"""

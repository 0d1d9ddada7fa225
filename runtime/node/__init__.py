"""Runs the processes of one node of a run, and places them on its hardware.

`agent/` is the node agent, which the launcher starts on each node. It uses `processes.py` (the node's part of
the plan), `supervise.py` (starts and ends processes so that none is left behind) and `forking.py` (starts
them as forks). Where a process runs: `topology.py` reads the hardware, `affinity.py` assigns CPUs and NICs,
`cpu_quota.py` reads how much of its CPUs' time a container may use, `environment.py` finds the address, the interface
and the GPUs, and `config.py` is the recipe's `placement` section.

`member_process.py` is how a process of a run begins. `actor_host.py` is the process of an actor of an app,
`gpu_use.py` and `machine_use.py` measure GPUs and the machine for the dashboard, and `scratch.py` makes temporary
folders that are removed even if their process is killed.
"""

"""Describes a run as a torchx application: one role for each group of the plan, one replica for each node.

A replica is a node agent.
"""

from __future__ import annotations

import os
import sys

from torchx import specs

from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan


def make_app(folder: RunFolder, plan: Plan) -> specs.AppDef:
    """The torchx AppDef of a plan. Its replicas use this process's Python and end when this process ends."""
    return specs.AppDef(
        name=plan.name,
        roles=[
            specs.Role(
                name=group,
                image="",  # the scheduler local_cwd uses the packages that are installed here
                entrypoint=sys.executable,
                args=["-m", "verst.launcher.local.tether", str(os.getpid()), *agent_command(folder, group)],
                num_replicas=len(nodes),
            )
            for group, nodes in plan.groups.items()
        ],
    )


def agent_command(folder: RunFolder, group: str) -> list[str]:
    """The command line of a group's node agents. torchx fills in the number of the node."""
    command = [sys.executable, "-m", "verst.runtime.node.agent", "--run", str(folder.root), "--group", group]
    return [*command, "--node", specs.macros.replica_id, "--generation", str(folder.generation)]

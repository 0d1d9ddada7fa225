"""The torchx application of a run: one role per group of the plan, one replica (a node agent) per node."""

from __future__ import annotations

import os
import sys

from torchx import specs

from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan


def make_app(folder: RunFolder, plan: Plan) -> specs.AppDef:
    """An AppDef whose replicas run this process's Python and end with this process."""
    return specs.AppDef(
        name=plan.name,
        roles=[
            specs.Role(
                name=group,
                image="",  # local_cwd runs what is installed here
                entrypoint=sys.executable,
                args=["-m", "verst.launcher.local.tether", str(os.getpid()), *agent_command(folder, group)],
                num_replicas=len(nodes),
            )
            for group, nodes in plan.groups.items()
        ],
    )


def agent_command(folder: RunFolder, group: str) -> list[str]:
    """The node agent of a replica; torchx fills in which."""
    command = [sys.executable, "-m", "verst.runtime.node.agent", "--run", str(folder.root), "--group", group]
    return [*command, "--node", specs.macros.replica_id, "--generation", str(folder.generation)]

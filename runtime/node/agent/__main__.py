"""The node agent's command line: `python -m verst.runtime.node.agent`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from verst.runtime.node.agent.agent import GRACE_S, Agent
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.user import user_name


def main(argv: list[str] | None = None) -> int:
    """Runs one node. Returns 0 after a good end, 128 + signal number if stopped, else the failure's code."""
    user_name()  # what it starts needs one
    parser = argparse.ArgumentParser(
        prog="verst.runtime.node.agent", description="Runs one node of a run's plan."
    )
    parser.add_argument("--run", required=True, type=Path, help="the run folder")
    parser.add_argument("--group", required=True, help='"trainer", "rollout", … as in plan.json')
    parser.add_argument("--node", required=True, type=int, help="which node of the group")
    parser.add_argument("--generation", required=True, type=int, help="the life of the run this belongs to")
    parser.add_argument("--grace", type=float, default=GRACE_S, help="seconds between SIGTERM and SIGKILL")
    args = parser.parse_args(argv)
    return Agent(RunFolder(args.run), args.group, args.node, args.generation, args.grace).run().code


if __name__ == "__main__":
    sys.exit(main())

"""Small stand-ins for a run's processes, so that its lives on Slurm can be tested in seconds.

What is real: Slurm, the scripts, the agents, `slurm_job`, the run folder. Instead of Megatron and SGLang there is
a controller that counts steps and saves when asked to, ranks that wait, and workers that note which life they
serve. `python small_processes.py controller STEPS SECONDS RANKS` and so on, started by an agent.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ.get("VERST_RUN", "."))
GENERATION = os.environ.get("VERST_GENERATION", "0")


def note(name: str, text: str) -> None:
    """Appends a line to a file of the run folder that the test reads."""
    with (FOLDER / name).open("a") as file:
        file.write(text + "\n")


def saved_step() -> int:
    """The step of the last checkpoint."""
    names = [path.parent.name for path in (FOLDER / "checkpoints").glob("step-*/checkpoint.json")]
    return max((int(name.partition("-")[2]) for name in names), default=0)


def save(step: int) -> None:
    """Leaves a checkpoint as far as the launcher looks at one."""
    folder = FOLDER / f"checkpoints/step-{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint.json").write_text("{}")


def ranks() -> int:
    """How many ranks of this life have started."""
    path = FOLDER / "ranks"
    lines = path.read_text().splitlines() if path.exists() else []
    return len({line.split()[1] for line in lines if line.split()[0] == GENERATION})


def controller(steps: int, seconds: float, count: int) -> int:
    """Counts to `steps` once all ranks are there; asked to stop, it saves and exits with 75 like the real one."""
    asked: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: asked.append(number))
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    step = saved_step()
    note("lives", f"{GENERATION} from {step} at {os.uname().nodename}")
    began = time.monotonic()
    while ranks() < count and not asked and time.monotonic() < began + 60:
        time.sleep(0.1)
    while step < steps:
        if (FOLDER / "fail").exists():
            return int((FOLDER / "fail").read_text())
        time.sleep(seconds)
        step += 1
        note("steps", f"{GENERATION} {step}")
        if asked:
            if not (FOLDER / "no-save").exists():
                save(step)
                note("saved", f"{GENERATION} {step}")
            return 75
    save(step)
    return 0


def rank() -> int:
    """Waits for its end."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    note("setup", f"{os.environ.get('FROM_SETUP')} {os.environ.get('FROM_CONTAINER')}")
    note(
        "ranks",
        f"{GENERATION} {os.environ['VERST_INDEX']} at {os.uname().nodename} {os.environ['VERST_HOST']}",
    )
    time.sleep(3600)
    return 1


def worker() -> int:
    """Notes each life that it serves, going on from one to the next; as with the real one SIGHUP ends it."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    index = os.environ["VERST_INDEX"]
    known = ""
    while True:
        generation = (FOLDER / "life").read_text().split()[0] if (FOLDER / "life").exists() else ""
        if generation != known:
            known = generation
            note("workers", f"{generation} {index} at {os.uname().nodename} pid {os.getpid()}")
        if (FOLDER / f"fail-{index}").exists():
            return 3
        time.sleep(0.2)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "controller":
        sys.exit(controller(int(arguments[1]), float(arguments[2]), int(arguments[3])))
    sys.exit(rank() if arguments[0] == "rank" else worker())

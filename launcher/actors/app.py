"""The schema of an app of actors (a YAML file), and the plan made from it. Such an app trains no model.

```yaml
name: sandbox
main: my_app:main                 # async def main(member): …; the app ends when it returns; default: when cancelled
nodes: 2
actors:
  sandbox: {actor: my_app:Sandbox, count: 4, arguments: {limit_s: 5}, max_restarts: 3, after: [store]}
  store: {actor: my_app:Store}
slurm: {sbatch: {partition: cpu, time: 1:00:00}}
```
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verst.launcher.recipe.faults import Fault, RecipeError, nearest
from verst.launcher.recipe.yaml_file import RecipeFile, read_recipe_file
from verst.runtime.hooks.dotted import DottedPathError, load
from verst.runtime.node.actor_host import MAIN, Hosted, Hosting
from verst.runtime.run.plan import Node, Pin, Plan, Process
from verst.slurm.config import SlurmConfig

GROUP: Literal["actors"] = "actors"  # the only group of an app's plan

_OnExit = Literal["ends_run", "fails_run", "restart", "restart_always"]
_ON_EXIT: dict[str, _OnExit] = {
    "never": "fails_run",
    "on_failure": "restart",
    "always": "restart_always",
}


class ActorConfig(BaseModel):
    """The settings of one kind of actor."""

    model_config = ConfigDict(extra="forbid")

    actor: str = Field(description="dotted path to a subclass of verst.runtime.actors.Actor")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of its constructor"
    )
    count: int = Field(1, ge=1, description="number of actors; the nodes get them in turn")
    gpus: int = Field(0, ge=0, description="GPUs per actor, which it sees in CUDA_VISIBLE_DEVICES")
    threads: int = Field(1, ge=1, description="OMP_NUM_THREADS of each actor")
    cpus: int | None = Field(
        None, ge=1, description="CPUs per actor, with affinity auto; default: an equal share"
    )
    restart: Literal["never", "on_failure", "always"] = Field(
        "on_failure",
        description="when an actor's process is restarted. `never`: its failure ends the app; `on_failure`: after a "
        "failure; `always`: however it ends",
    )
    max_restarts: int = Field(
        3,
        ge=0,
        description="with restart on_failure: most restarts of an actor; the next failure ends the app",
    )
    after: list[str] = Field(
        default_factory=list,
        description="actors that must run before this one starts, and that leave after it",
    )
    start_timeout_s: float = Field(
        600.0, gt=0, description="longest wait for the actors in `after`, in seconds"
    )


class AppConfig(BaseModel):
    """All settings of an app."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    runs_dir: str = Field("runs", description="folder that contains the app's folder, runs_dir/name")
    main: str | None = Field(None, description="dotted path to `async def main(member: Member) -> None`")
    nodes: int = Field(1, ge=1)
    affinity: Literal["auto", "none"] = Field(
        "auto",
        description="`auto`: each actor runs on its own CPUs, near its GPUs, if there are at least two CPUs for each; "
        "`none`: anywhere on its node",
    )
    actors: dict[str, ActorConfig] = Field(min_length=1)
    slurm: SlurmConfig = SlurmConfig()

    @property
    def folder(self) -> Path:
        """The absolute path of the app's folder."""
        return Path(self.runs_dir).expanduser().absolute() / self.name

    def hosting(self) -> Hosting:
        """The part of the settings that the app's processes read, from actors.json."""
        roles = {
            role: Hosted(
                actor=config.actor,
                arguments=config.arguments,
                count=config.count,
                after=tuple(config.after),
                start_timeout_s=config.start_timeout_s,
            )
            for role, config in self.actors.items()
        }
        return Hosting(roles=roles, main=self.main)


def load_app(path: Path, overrides: list[str]) -> AppConfig:
    """Reads and checks an app's file. Raises RecipeError with every fault and its place."""
    file = read_recipe_file(path)
    file.override(overrides)
    try:
        app = AppConfig.model_validate(file.data, strict=True)
    except ValidationError as error:
        faults = [Fault(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors(include_url=False)]
        raise _refused(file, file.faults + faults) from error
    if faults := [*file.faults, *_faults(app)]:
        raise _refused(file, faults)
    return app


def _refused(file: RecipeFile, faults: list[Fault]) -> RecipeError:
    return RecipeError(file.name, [file.line(fault) for fault in faults])


def _faults(app: AppConfig) -> list[Fault]:
    from verst.runtime.actors import Actor
    from verst.runtime.actors.actor import methods
    from verst.runtime.actors.directory import check_role

    found = []
    for role, config in app.actors.items():
        place = f"actors.{role}"
        try:
            check_role(role)
        except ValueError as error:
            found.append(Fault(place, str(error)))
        if role == MAIN:
            found.append(Fault(place, "the main function's process has that name: choose another name"))
        try:
            made = load(config.actor, "actor")
            if not (isinstance(made, type) and issubclass(made, Actor)):
                found.append(Fault(f"{place}.actor", f"{config.actor} must be a subclass of Actor"))
            else:
                methods(made)
        except (DottedPathError, TypeError) as error:
            found.append(Fault(f"{place}.actor", str(error)))
        if config.restart == "always" and "max_restarts" in config.model_fields_set:
            found.append(
                Fault(
                    f"{place}.max_restarts",
                    "has no effect with restart always, which has no limit: leave it out, or use on_failure",
                )
            )
        for other in config.after:
            if other not in app.actors:
                found.append(
                    Fault(f"{place}.after", f"there is no actor {other!r}.{nearest(other, list(app.actors))}")
                )
    if circle := _circle(app):
        found.append(Fault("actors", f"the `after` of these actors form a circle: {' -> '.join(circle)}"))
    if app.main is not None:
        try:
            load(app.main, "main")
        except DottedPathError as error:
            found.append(Fault("main", str(error)))
    return found


def _circle(app: AppConfig) -> list[str]:
    """Actors whose `after` form a circle, e.g. ["a", "b", "a"]; empty if there are none."""

    def follow(path: list[str]) -> list[str]:
        for other in app.actors[path[-1]].after:
            if other in path:
                return [*path[path.index(other) :], other]
            if other in app.actors and (found := follow([*path, other])):
                return found
        return []

    return next((found for role in app.actors if (found := follow([role]))), [])


def make_plan(app: AppConfig, python: str, python_path: str, host: str, gpus: tuple[str, ...] | None) -> Plan:
    """Makes the app's plan: the nodes get the actors in turn, and the main function is on the first node.

    `gpus`: the GPUs of this machine, for all actors; None on a cluster, where each node has its own.
    """
    nodes: list[list[Process]] = [[] for _ in range(app.nodes)]
    taken = [0] * app.nodes
    common = {"PYTHONPATH": python_path} if python_path else {}
    nodes[0].append(_process(app, python, MAIN, 0, common | {"CUDA_VISIBLE_DEVICES": ""}, None, "ends_run"))
    place = 0
    for role, config in app.actors.items():
        for index in range(config.count):
            node = place % app.nodes
            place += 1
            wanted = list(range(taken[node], taken[node] + config.gpus))
            taken[node] += config.gpus
            env = common | {"OMP_NUM_THREADS": str(config.threads)}
            devices: list[int] | None = None
            if gpus is None and wanted:
                devices = wanted
            else:
                env["CUDA_VISIBLE_DEVICES"] = ",".join((gpus or ())[i] for i in wanted)
            on_exit = _ON_EXIT[config.restart]
            nodes[node].append(_process(app, python, role, index, env, devices, on_exit))
    return Plan(
        name=app.name,
        groups={GROUP: [Node(processes=p) for p in nodes]},
        host=host,
        one_machine=gpus is not None,
    )


def _process(
    app: AppConfig,
    python: str,
    role: str,
    index: int,
    env: dict[str, str],
    gpus: list[int] | None,
    on_exit: _OnExit,
) -> Process:
    argv = [python, "-m", "verst.runtime.node.actor_host", "--run", str(app.folder)]
    pinned = role != MAIN and app.affinity == "auto"
    return Process(
        role=role,
        index=index,
        argv=[*argv, "--role", role, "--index", str(index)],
        env=env,
        gpus=gpus,
        pin=Pin(cpus=app.actors[role].cpus) if pinned else None,
        on_exit=on_exit,
        max_restarts=0 if role == MAIN else app.actors[role].max_restarts,
        forks=role != MAIN
        and app.actors[role].threads == 1,  # how many threads the main function needs is unknown
    )


def default_python(app: AppConfig) -> str:
    """The Python interpreter of the nodes; by default this process's."""
    return app.slurm.python or sys.executable

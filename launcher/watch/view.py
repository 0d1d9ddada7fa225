"""Shows a run's progress: bars, reward curve and seconds per phase on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import time
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from verst.launcher.watch.curve import draw_curve
from verst.launcher.watch.phase import seconds_left
from verst.launcher.watch.progress import Progress, ProgressReader, phases_of
from verst.runtime.data.config import HELD_OUT
from verst.runtime.run.checkpoints import latest
from verst.runtime.run.folder import RunFolder

_CURVE_HEIGHT = 9
_LEAST_CURVE = 4  # lines
_EVENTS_SHOWN = 4


class View(Protocol):
    """Shows a run. `update` is called a few times a second."""

    def __enter__(self) -> View: ...
    def __exit__(self, *error: object) -> None: ...
    def update(self) -> None:
        """Shows the changes in the run folder."""


def make_view(folder: RunFolder, console: Console) -> View:
    """Makes a live view on a terminal, and plain lines elsewhere."""
    return LiveView(folder, console) if console.is_terminal else PlainView(folder, console)


class LiveView:
    """Redraws the whole view in place at each update."""

    def __init__(self, folder: RunFolder, console: Console) -> None:
        self._reader = ProgressReader(folder)
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._started = time.monotonic()

    def __enter__(self) -> LiveView:
        self._reader.update()
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.update()
        self._live.__exit__(None, None, None)

    def update(self) -> None:
        """Reads the folder and redraws."""
        self._reader.update()
        drawing = draw(
            self._reader.progress,
            elapsed=time.monotonic() - self._started,
            width=min(self._console.width, 100),
            height=self._console.height - 1,  # the cursor's line
            now=time.time(),
        )
        self._live.update(drawing, refresh=True)


class PlainView:
    """One line per step, evaluation and event, for logs and pipes."""

    def __init__(self, folder: RunFolder, console: Console) -> None:
        self._reader = ProgressReader(folder)
        self._console = console

    def __enter__(self) -> PlainView:
        self._reader.update()  # skips the records of earlier lives
        return self

    def __exit__(self, *error: object) -> None:
        self.update()

    def update(self) -> None:
        """Prints the records written since the last call."""
        metrics, events = self._reader.update()
        for record in sorted([*metrics, *events], key=lambda record: record.get("time", 0.0)):
            line = plain_line(record, self._reader.progress)
            if line:
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def plain_line(record: dict[str, Any], progress: Progress) -> str | None:
    """Formats a metric or an event as one line; None for records that only the live view needs."""
    match record.get("kind"):
        case "step":
            place = f"step {record['step']}/{progress.steps_planned}"
            return f"{place}  {step_numbers(record)}  {phases(phases_of(record))}{bottleneck(record)}"
        case "rollout":
            return (
                f"kept the groups of step {record['step']}  reward {record['reward']:.3f}  "
                f"{record['rollout_tokens_per_s']:.0f} tokens/s"
            )
        case "eval":
            return f"{held_out(record)}: {score(record)}"
        case "stage_step":
            step, planned = record["step"], progress.steps_planned
            if step not in (1, planned, progress.offline_planned) and step % 10:
                return None
            return f"{record['stage']} step {step}/{planned}  {stage_numbers(record)}"
        case "stage_eval":
            return f"held-out rows after step {record['step']}: {stage_score(record)}"
        case "rollout_progress" | "eval_progress" | "sync" | "turn" | "checkpoint" | "data" if (
            "message" not in record
        ):
            return None
        case _:
            return event_text(record)


def event_text(event: dict[str, Any]) -> str:
    """Formats an event as one line. Longer text such as tracebacks is in the logs."""
    match event:
        case {"message": str(message)}:
            return next(iter(message.splitlines()), "")
        case {"kind": "process_restarted", "process": process, "ending": ending, "restart": restart}:
            return f"{process}: {ending}; restart {restart}"
        case {"kind": "process_failed", "reason": reason}:
            return str(reason)
    rest = {key: value for key, value in event.items() if key not in ("time", "generation", "kind", "lines")}
    return " ".join([str(event.get("kind")), *(f"{key}={value}" for key, value in rest.items())])


def draw(
    progress: Progress,
    elapsed: float,
    width: int,
    height: int | None = None,
    processes: RenderableType | None = None,
    now: float | None = None,
) -> RenderableType:
    """Draws the whole view: what matters first at the top, and what there is room for below.

    `height`: the lines that it may take; None: as many as it needs. The phases' table and then the curve get what the
    rest leaves. `processes`: a table that comes before the events. `now`: for a run that is running, the time.
    """
    parts: list[RenderableType] = [_header(progress, elapsed), _now(progress, now), _bars(progress, width)]
    if processes is not None:
        parts.append(processes)
    parts += [Text(event_text(event), style="dim") for event in list(progress.events)[-_EVENTS_SHOWN:]]
    if progress.last_step is not None:
        last = progress.last_step
        numbers = stage_numbers(last) if last["kind"] == "stage_step" else step_numbers(last)
        parts.append(Text(numbers + bottleneck(last)))
    left = None if height is None else height - sum(lines_of(part, width) for part in parts)
    if (progress.steps or progress.offline) and (
        left is None or (left := left - lines_of(phase_table(progress), width)) >= 0
    ):
        parts.append(phase_table(progress))
    elif left is not None and (progress.steps or progress.offline):
        left += lines_of(phase_table(progress), width)  # it has no room; the curve may
    lines = _CURVE_HEIGHT if left is None else min(_CURVE_HEIGHT, left - 1)
    if lines >= _LEAST_CURVE and len(progress.rewards()) > 1:
        parts.append(reward_curve(progress, width, lines))
    elif lines >= _LEAST_CURVE and len(progress.losses()) > 1:
        parts.append(loss_curve(progress, width, lines))
    return Group(*parts)


def lines_of(part: RenderableType, width: int) -> int:
    """The lines that a part takes on a screen of this width."""
    screen = Console(width=width, file=io.StringIO(), color_system=None)
    return len(screen.render_lines(part, screen.options.update(width=width), pad=False))


def _now(progress: Progress, now: float | None) -> Text:
    """What the run is doing, and when it may be over. Empty if it is not running."""
    if now is None:
        return Text("")
    text = Text(progress.phase.words)
    mean = progress.seconds_by_step()
    found = seconds_left(progress.phase, progress.steps_planned - progress.steps_done, mean, now)
    if found is not None:
        seconds, least = found
        text.append(f"   {'at least' if least else 'about'} {duration(seconds)} left", style="cyan")
    return text


def _header(progress: Progress, elapsed: float) -> Text:
    text = Text(f"{progress.name}  {duration(elapsed)}", style="bold")
    for evaluation in progress.evaluations[-2:]:
        text.append(f"   {held_out(evaluation)} {score(evaluation)}", style="green")
    return text


def _bars(progress: Progress, width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    bar = max(10, width - 40)
    if progress.offline_done < progress.offline_planned < progress.steps_planned:
        done, planned = progress.offline_done, progress.offline_planned
        bars = ProgressBar(total=planned, completed=done, width=bar)
        table.add_row("before the policy", bars, f"{done}/{planned} steps")
    done, planned = progress.steps_done, progress.steps_planned
    table.add_row("run", ProgressBar(total=planned, completed=done, width=bar), f"{done}/{planned} steps")
    if progress.groups is not None:
        step, groups, of = progress.groups
        bars = ProgressBar(total=max(of, 1), completed=groups, width=bar)
        dropped = f", {progress.dropped} dropped" if progress.dropped else ""
        table.add_row(f"step {step}", bars, f"{groups}/{of} groups{dropped}")
    return table


def stage_numbers(record: dict[str, Any]) -> str:
    """The main figures of a step of a stage without engines as one line."""
    return f"{step_numbers(record)}  epoch {float(record.get('epoch') or 0):.2f}"


def stage_score(record: dict[str, Any]) -> str:
    """Formats the loss on a stage's held-out rows, of pairs also their accuracy, and their number."""
    accuracy = record.get(f"{record['stage']}_accuracy")
    right = "" if accuracy is None else f", accuracy {float(accuracy):.3f}"
    return f"loss {float(record[record['stage'] + '_loss']):.4f}{right} ({record['rows']} rows)"


def reward_curve(progress: Progress, width: int, height: int = _CURVE_HEIGHT) -> Text:
    """The curve of the mean training reward by step, `height` lines high without its title."""
    points = [(float(step), reward) for step, reward in progress.rewards()]
    return Text("\n".join(["mean training reward by step", *draw_curve(points, width, height)]))


def loss_curve(progress: Progress, width: int, height: int = _CURVE_HEIGHT) -> Text:
    """The curve of the loss by step of stages without engines, `height` lines high without its title."""
    points = [(float(step), loss) for step, loss in progress.losses()]
    return Text("\n".join(["loss by step", *draw_curve(points, width, height)]))


def phase_table(progress: Progress) -> Table:
    """A table of seconds per phase: in the last step, and the mean over all steps."""
    last = phases_of(progress.last_step or {})
    means = progress.seconds_by_phase()
    whole = sum(seconds for phase, seconds in means.items() if "/" not in phase) or 1.0
    table = Table("phase", "last step", "mean", "share", box=None, padding=(0, 2))
    for phase in ordered(means):
        now = f"{last[phase]:.2f} s" if phase in last else ""
        indent = "  " if "/" in phase else ""
        share = f"{100 * means[phase] / whole:.0f} %"
        table.add_row(indent + phase.rpartition("/")[2], now, f"{means[phase]:.2f} s", share)
    return table


def ordered(means: dict[str, float]) -> list[str]:
    """The phases, longest first, each followed by its parts."""
    wholes = [phase for phase in means if "/" not in phase]
    return [name for whole in wholes for name in (whole, *(p for p in means if p.startswith(f"{whole}/")))]


def step_numbers(record: dict[str, Any]) -> str:
    """The main figures of a step as one line: reward or accuracy, loss, gradient norm and throughput."""
    shown = [
        ("reward", "reward", ".3f"),
        ("loss", "loss", ".4f"),
        ("accuracy", "dpo_accuracy", ".3f"),
        ("margin", "dpo_margin", ".3f"),
        ("accuracy", "reward_model_accuracy", ".3f"),
        ("margin", "reward_model_margin", ".3f"),
        ("grad norm", "grad_norm", ".3f"),
        ("trained tokens/s", "tokens_per_s", ".0f"),
        ("generated tokens/s", "rollout_tokens_per_s", ".0f"),
    ]
    return "  ".join(
        f"{label} {float(record[key]):{form}}" for label, key, form in shown if record.get(key) is not None
    )


def phases(seconds: dict[str, float]) -> str:
    """Formats seconds by phase as one line, longest first, without the parts of phases."""
    shown = sorted(
        ((phase, value) for phase, value in seconds.items() if "/" not in phase), key=lambda item: -item[1]
    )
    return " ".join(f"{phase} {value:.1f}s" for phase, value in shown)


def bottleneck(record: dict[str, Any]) -> str:
    """Formats a step's bottleneck and its share of the step's time; empty if the record has none."""
    path = record.get("critical_path") or {}
    whole, name = sum(path.values()), record.get("bottleneck")
    return f"  bottleneck {name} {100 * path[name] / whole:.0f} %" if name in path and whole else ""


def held_out(evaluation: dict[str, Any]) -> str:
    """What an evaluation is, and when it was made: "held-out before training", "held-out at step 20"."""
    when = evaluation["when"]
    if when == "alone":  # by `verst eval`: there is no training
        return "held-out"
    return f"held-out at step {evaluation['step']}" if when == "during" else f"held-out {when} training"


def score(evaluation: dict[str, Any]) -> str:
    """Formats a set's reward with its interval, its other figures, and how many answers they are of."""
    name = "" if evaluation["set"] == HELD_OUT else f"{evaluation['set']} "
    others = [k for k in evaluation if k.startswith(("pass@", "best@", "maj@")) and not k.endswith("_ci")]
    figures = [f"{name}{_with_interval(evaluation, 'reward')}"]
    figures += [f"{key} {_with_interval(evaluation, key)}" for key in others]
    return f"{', '.join(figures)} ({evaluation['samples']} answers)"


def _with_interval(evaluation: dict[str, Any], key: str) -> str:
    half = evaluation.get(f"{key}_ci")
    return f"{float(evaluation[key]):.3f}" + (f" ± {float(half):.3f}" if half is not None else "")


def duration(seconds: float) -> str:
    """Formats seconds for people: "3 min 12 s". Rounds first, so that 239.6 is "4 min 0 s" and not "3 min 60 s".

    The dashboard's `duration` (`static/dom.js`) has the same rule; it adds decimals below ten seconds.
    """
    whole, minutes, hours = round(seconds), round(seconds / 60), round(seconds / 3600)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{hours // 24} d {hours % 24} h"


def print_summary(folder: RunFolder, console: Console, elapsed: float) -> None:
    """Prints the summary of a finished run: scores before and after, where its results are, how long it took."""
    reader = ProgressReader(folder)
    reader.update()
    progress = reader.progress
    table = Table.grid(padding=(0, 2))
    for name in dict.fromkeys(evaluation["set"] for evaluation in progress.evaluations):
        before, after = progress.evaluation("before", name), progress.evaluation("after", name)
        if before is not None and after is not None:
            table.add_row("held-out", f"{score(before)} before -> {score(after)} after")
    losses, held_out = progress.losses(), progress.stage_evaluations
    if losses:
        table.add_row(
            "loss",
            f"{losses[0][1]:.4f} in step {losses[0][0]} -> {losses[-1][1]:.4f} in step {losses[-1][0]}",
        )
    if len(held_out) > 1:
        table.add_row("held-out rows", f"{stage_score(held_out[0])} -> {stage_score(held_out[-1])}")
    rewards = progress.rewards()
    if rewards:
        table.add_row(
            "reward",
            f"{rewards[0][1]:.3f} in step {rewards[0][0]} -> {rewards[-1][1]:.3f} in step {rewards[-1][0]}",
        )
    if progress.steps or progress.offline:
        table.add_row("per step", phases(progress.seconds_by_phase()))
    table.add_row("checkpoint", str(latest(folder.checkpoints) or "none"))
    if (folder.export / "config.json").is_file():
        table.add_row("export", f"{folder.export} (a Hugging Face folder)")
    table.add_row("wall time", duration(elapsed))
    console.print(table, highlight=False, soft_wrap=True)

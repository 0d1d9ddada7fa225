"""The subcommands that make, convert and export model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verst.launcher.commands.arguments import TAKES_OVERRIDES, Overrides, RunPath
from verst.launcher.commands.guard import guard

app = typer.Typer()


@app.command()
def export(
    run_dir: RunPath,
    out: Annotated[Path, typer.Argument(help="The Hugging Face folder to write.", metavar="OUT")],
    step: Annotated[
        int | None, typer.Option(help="The checkpoint to export, by the number in its folder's name.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Export the checkpoint with the highest held-out score.")
    ] = False,
) -> None:
    """Write the model of a run as a Hugging Face folder.

    It is the model of the end or, if the run has not finished, of its newest checkpoint. Needs no GPU, and little
    memory: the model is written tensor by tensor.
    """
    from verst.launcher.models.export import export_run

    raise typer.Exit(guard(export_run, run_dir, out, step, best))


@app.command("eval", context_settings=TAKES_OVERRIDES)
def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run's folder or its name in runs/, or a Hugging Face folder.", metavar="RUN_OR_MODEL"
        ),
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe of engines and data; by default the run's own.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A file of prompts to evaluate on, instead of the recipe's sets.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="The checkpoint to evaluate, by the number in its folder's name.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Evaluate the best checkpoint (checkpoint.best).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Evaluate a model on this machine, without a trainer.

    The engines serve the model of a run's end, its newest checkpoint, or a Hugging Face folder, and the run's reward
    scores the answers. Prints each figure with its 95 % interval.
    """
    from verst.launcher.models.evaluate import evaluate as carry_out

    raise typer.Exit(guard(carry_out, source, list(overrides or []), recipe, data, step, best, as_json))


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="smollm2-135m or tiny-moe.", metavar="MODEL")],
    dest: Annotated[
        Path | None, typer.Argument(help="The folder to make; default: models/MODEL.", metavar="[DEST]")
    ] = None,
) -> None:
    """Make the model folder and the prompts for a bundled recipe.

    Downloads smollm2-135m; makes tiny-moe from random numbers, without a network.
    """
    from verst.launcher.models.fetch import fetch_bundled

    raise typer.Exit(guard(fetch_bundled, model, dest))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A Hugging Face model folder.", metavar="SOURCE")],
    target: Annotated[Path, typer.Argument(help="The converted folder to write.", metavar="TARGET")],
    format: Annotated[str, typer.Option("--format", help="bf16, fp8, mxfp8, nvfp4 or int4.")],
    block: Annotated[
        str | None, typer.Option(help="fp8: the block that shares a scale; default: 128x128.")
    ] = None,
    ue8m0: Annotated[bool, typer.Option("--ue8m0", help="fp8: use scales that are powers of two.")] = False,
    group_size: Annotated[
        int | None, typer.Option(help="int4: the group that shares a scale: 32, 64 or 128 (default).")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="A layer not to quantise: part of its path, *, or re:REGEX; may be repeated."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="The device to compute on, e.g. cuda; all give the same bytes.")
    ] = "cpu",
) -> None:
    """Convert a model folder to an engine's format, or back to bf16."""
    from verst.launcher.models.convert import convert_folder

    raise typer.Exit(
        guard(convert_folder, source, target, format, block, ue8m0, group_size, list(ignore or []), device)
    )

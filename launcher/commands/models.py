"""Model folders: made, converted, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verst.launcher.commands.guard import guard

app = typer.Typer()


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="a run folder", metavar="RUN_DIR")],
    out: Annotated[Path, typer.Argument(help="where the Hugging Face folder is put", metavar="OUT")],
) -> None:
    """Copy a finished run's model as a Hugging Face folder."""
    from verst.launcher.models.export import export_run

    raise typer.Exit(guard(export_run, source, out))


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="smollm2-135m or tiny-moe", metavar="MODEL")],
    dest: Annotated[Path | None, typer.Argument(help="by default models/MODEL", metavar="[DEST]")] = None,
) -> None:
    """Make the model folder of a bundled recipe, and the prompts that go with it."""
    from verst.launcher.models.fetch import fetch_bundled

    raise typer.Exit(guard(fetch_bundled, model, dest))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="a Hugging Face model folder", metavar="SOURCE")],
    target: Annotated[Path, typer.Argument(help="where the converted folder is put", metavar="TARGET")],
    format: Annotated[str, typer.Option("--format", help="bf16, fp8, mxfp8, nvfp4 or int4")],
    block: Annotated[str | None, typer.Option(help="of fp8, by default 128x128")] = None,
    ue8m0: Annotated[bool, typer.Option("--ue8m0", help="fp8 with scales that are powers of two")] = False,
    group_size: Annotated[int | None, typer.Option(help="of int4: 32, 64 or 128 (the default)")] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="a layer to leave alone: part of its path, *, or re:REGEX; repeat"),
    ] = None,
    device: Annotated[str, typer.Option(help="where to compute, e.g. cuda; the bytes are the same")] = "cpu",
) -> None:
    """Convert a model folder to the format an engine serves, or back to bf16."""
    from verst.launcher.models.convert import convert_folder

    raise typer.Exit(
        guard(convert_folder, source, target, format, block, ue8m0, group_size, list(ignore or []), device)
    )

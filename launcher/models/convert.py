"""Implements `verst convert`: converts a model folder to another weight format, with a progress bar."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from verst.launcher.recipe.faults import UserError, nearest
from verst.sync.formats import FORMATS, Bf16, Format, Fp8, Int4, Mxfp8, Nvfp4, engine_fault


def convert_folder(
    source: Path,
    target: Path,
    format: str,
    block: str | None,
    ue8m0: bool,
    group_size: int | None,
    ignore: list[str],
    device: str,
) -> int:
    """Implements `verst convert`. Returns the exit code.

    Raises UserError for options that do not fit the format, and for a folder that cannot be converted.
    """
    made = _format(format, block, ue8m0, group_size)
    if isinstance(made, Bf16) and ignore:
        raise UserError("--ignore names layers not to quantise, but bf16 quantises none: leave it out")
    if not source.is_dir():
        raise UserError(f"{source} {'is not a folder' if source.exists() else 'does not exist'}")
    from verst.sync.hf.convert import convert
    from verst.sync.hf.folder import read_config

    _check_device(device)
    began = time.monotonic()
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("reading")

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        try:
            done = convert(source, target, made, ignore, device, show)
        except (ValueError, FileExistsError) as error:
            raise UserError(str(error)) from error
    layers = f"{done.quantised} layers in {format}, " if done.quantised else ""
    print(
        f"{target}: {layers}{done.kept} tensors in bfloat16 or unchanged; {decimal(done.nbytes)} in "
        f"{done.files} files, read back and verified, in {time.monotonic() - began:.0f} s"
    )
    if fault := engine_fault(made, read_config(target)):
        print(f"warning: {fault}", file=sys.stderr)
    return 0


def _format(name: str, block: str | None, ue8m0: bool, group_size: int | None) -> Format:
    if name not in FORMATS:
        raise UserError(f"no format {name!r}.{nearest(name, FORMATS)}")
    for option, given, owner in (
        ("--block", block is not None, "fp8"),
        ("--ue8m0", ue8m0, "fp8"),
        ("--group-size", group_size is not None, "int4"),
    ):
        if given and name != owner:
            raise UserError(f"{option} is an option of the format {owner}; {name} does not have it")
    try:
        if name == "fp8":
            return Fp8(_block(block or "128x128"), ue8m0)
        if name == "int4":
            return Int4(128 if group_size is None else group_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    if name == "nvfp4":
        return Nvfp4()
    return Mxfp8() if name == "mxfp8" else Bf16()


def _block(text: str) -> tuple[int, int]:
    rows, cross, columns = text.partition("x")
    if not (cross and rows.isdecimal() and columns.isdecimal()):
        raise UserError(f"--block {text} must have the form ROWSxCOLUMNS, e.g. 128x128")
    return int(rows), int(columns)


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error

"""Calls Megatron's own argument parser with options as a recipe writes them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch

from verst.runtime.messages.model_config import ArgumentValue


def to_argv(options: Mapping[str, ArgumentValue]) -> list[str]:
    """Turns options into a command line: `{"lr": 1e-6, "swiglu": True, "moe-layer-freq": [0, 1]}`.

    False omits a flag.
    """
    argv: list[str] = []
    for name, value in options.items():
        if value is False:
            continue
        argv.append(f"--{name}")
        if isinstance(value, list):
            argv += [str(v) for v in value]
        elif value is not True:
            argv.append(str(value))
    return argv


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)


@functools.cache
def megatron_parser() -> argparse.ArgumentParser:
    """Megatron's parser, which raises argparse.ArgumentError where it would exit. Making it takes 0.3 s.

    Copy what it returns before changing it: its defaults are the same objects for every command line.
    """
    from megatron.training.arguments import add_megatron_arguments

    return add_megatron_arguments(_Parser(allow_abbrev=False, exit_on_error=False, add_help=False))


def parsed_values(
    parser: argparse.ArgumentParser,
    actions: Mapping[str, argparse.Action],
    options: Mapping[str, ArgumentValue],
) -> dict[str, Any]:
    """Parses `options` alone; returns their values by the parser's `dest`."""
    namespace = parser.parse_args(to_argv(options))
    return {actions[name].dest: getattr(namespace, actions[name].dest) for name in options}


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Silences Megatron's parser, which prints every argument and warns of every optional package."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def device_capability() -> Iterator[None]:
    """Without a GPU, pretends to have one that supports everything, so that recipes can be checked
    anywhere."""
    if torch.cuda.is_available():
        yield
        return
    properties = mock.Mock(major=9, minor=0)
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
    ):
        yield

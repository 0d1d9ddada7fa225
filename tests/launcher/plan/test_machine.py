"""A local run uses the GPUs that it is given, and none when told so."""

from __future__ import annotations

import os

import pytest

from verst.launcher.plan.machine import this_machine


@pytest.mark.parametrize(("visible", "gpus"), [("", ()), ("3,1", ("3", "1")), ("GPU-1a2b", ("GPU-1a2b",))])
def test_cuda_visible_devices_is_respected(monkeypatch, visible, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = this_machine()
    assert machine.gpus == gpus
    assert machine.cores == len(os.sched_getaffinity(0))

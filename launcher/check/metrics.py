"""Checks the recipe's `metrics` section: missing packages, and a tracker that has nowhere to write."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from verst.launcher.recipe.faults import Fault
from verst.runtime.metrics.config import PACKAGES, MetricsConfig, wanted


def metrics_faults(config: MetricsConfig) -> Iterator[Fault]:
    """The faults that would otherwise show only when the run starts."""
    for name in wanted(config):
        module, package = PACKAGES[name]
        if find_spec(module) is None:
            yield Fault(
                f"metrics.{name}",
                f"needs the package {package}, which is not installed here: `pip install {package}`, "
                "or `scripts/environment.sh trackers` in the checkout for all of them",
            )
    prometheus = config.prometheus
    if prometheus is not None and prometheus.port is None and prometheus.textfile is None:
        yield Fault(
            "metrics.prometheus",
            "has neither a port nor a textfile, so it would publish nothing: set one of them",
        )
    if prometheus is not None and prometheus.textfile and not prometheus.textfile.endswith(".prom"):
        yield Fault(
            "metrics.prometheus.textfile",
            f"is {prometheus.textfile!r}: the node exporter reads only files whose names end in .prom",
        )

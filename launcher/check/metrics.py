"""Faults of the recipe's `metrics` section: packages that are not there, a tracker with nowhere to write."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from verst.launcher.recipe.faults import Fault
from verst.runtime.metrics.config import PACKAGES, MetricsConfig, wanted


def metrics_faults(config: MetricsConfig) -> Iterator[Fault]:
    """What would only show when the run begins."""
    for name in wanted(config):
        module, package = PACKAGES[name]
        if find_spec(module) is None:
            yield Fault(
                f"metrics.{name}",
                f"needs the package {package}, which is not installed here: `pip install {package}`, "
                "or `pip install 'verst[trackers]'` for all of them",
            )
    prometheus = config.prometheus
    if prometheus is not None and prometheus.port is None and prometheus.textfile is None:
        yield Fault("metrics.prometheus", "has neither a port nor a textfile: it would tell nobody anything")
    if prometheus is not None and prometheus.textfile and not prometheus.textfile.endswith(".prom"):
        yield Fault(
            "metrics.prometheus.textfile",
            f"is {prometheus.textfile!r}: the node exporter reads only names that end in .prom",
        )

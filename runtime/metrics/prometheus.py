"""Prometheus: shows the latest step's figures as gauges, on a port or in a file for the node exporter.

"seconds/train" becomes `verst_seconds_train{run="NAME"}`. The figures are not secret, and the port does not
check who reads them. It is on the loopback interface unless the recipe says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, start_http_server, write_to_textfile

from verst.runtime.metrics.config import PrometheusConfig


class PrometheusSink:
    """One gauge for each figure."""

    def __init__(self, run: str, config: PrometheusConfig) -> None:
        """Raises OSError if the port is taken."""
        self._run = run
        self._textfile = config.textfile
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._server = None
        if config.port is not None:
            self._server, _ = start_http_server(config.port, config.address, self._registry)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sets the gauges, and replaces the textfile."""
        for name, value in {"step": step, **values}.items():
            gauge = "verst_" + re.sub(r"\W+", "_", name)
            if gauge not in self._gauges:
                text = f"{name} of the latest step in metrics.jsonl"
                self._gauges[gauge] = Gauge(gauge, text, ["run"], registry=self._registry)
            self._gauges[gauge].labels(self._run).set(value)
        if self._textfile is not None:
            write_to_textfile(self._textfile, self._registry)

    def close(self) -> None:
        """Closes the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

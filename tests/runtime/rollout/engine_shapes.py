"""SGLang's arguments for engines of several ranks."""

from __future__ import annotations

from typing import Any

TENSOR_PARALLEL: dict[str, Any] = {"tp-size": 2}
# Attention, embedding and norms whole on each rank, with requests of its own; experts and head cut in two.
DATA_PARALLEL: dict[str, Any] = {"tp-size": 2, "dp-size": 2, "enable-dp-attention": True}
# The head whole on each rank too, and whole experts on one of them.
WITH_EXPERTS: dict[str, Any] = {**DATA_PARALLEL, "ep-size": 2, "enable-dp-lm-head": True}
# Two groups of two ranks: attention cut in two within each, experts and head in four.
WITHIN_GROUPS: dict[str, Any] = {"tp-size": 4, "dp-size": 2, "enable-dp-attention": True}

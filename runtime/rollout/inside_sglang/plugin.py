"""The plug-in that applies all of Verst's changes to SGLang, which calls `register` in each of its processes.

It does nothing unless the process belongs to an engine that Verst started (`ENGINE` in the environment), so for all
other users of the same Python installation SGLang is unchanged.
"""

from __future__ import annotations

import os
import sys
import traceback

ENGINE = "VERST_ENGINE"  # "cpu" or "cuda"


def register() -> None:
    """Applies the changes. Ends the process if one cannot be made, because SGLang would go on without it."""
    device = os.environ.get(ENGINE)
    if device is None:
        return
    try:
        if device == "cpu":
            from verst.runtime.rollout.inside_sglang import cpu as engine_cpu

            engine_cpu.apply()
        from verst.runtime.rollout.inside_sglang import groups as engine_groups
        from verst.runtime.rollout.inside_sglang import prefixes as engine_prefixes
        from verst.runtime.rollout.inside_sglang import repacks as engine_repacks
        from verst.runtime.rollout.inside_sglang import routing as engine_routing
        from verst.runtime.rollout.inside_sglang import sampling as engine_sampling
        from verst.runtime.rollout.inside_sglang import weights as engine_weights

        engine_sampling.apply()
        engine_weights.apply()
        engine_routing.apply()
        engine_prefixes.apply()
        engine_groups.apply()
        engine_repacks.apply()
    except Exception:
        # SGLang's load_plugins() logs any Exception and continues, but it lets SystemExit through.
        traceback.print_exc()
        sys.exit("Verst's changes do not fit this SGLang; is its version the one in constraints.txt?")

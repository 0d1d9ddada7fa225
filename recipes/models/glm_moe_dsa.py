"""GLM-5 and models of its shape (GLM-5.1, GLM-5.2): DeepSeek-V3.2's layers in other sizes, where layers can share.

A layer that shares (`indexer_types`: "shared") has no indexer. It attends to the tokens chosen by the last layer before
it that has one (IndexCache, arXiv:2603.12201). Of GLM-5.2's 78 layers, 21 choose.

transformers and SGLang read a checkpoint differently. This family follows SGLang, whose choices are trained on:
- `indexer_rope_interleave`, which GLM-5 sets: transformers does not read it, and its indexer rotates halves.
- The norms of the compressed queries, keys and values use `rms_norm_eps` (1e-5 in GLM-5); transformers uses 1e-6.
- If the two would let different layers share, the configuration is refused (`sync/replay/selection.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from verst.recipes.models import deepseek_v3, deepseek_v32, llama
from verst.sync.layout.mapping import ArgumentValue, Family, HfConfig, Rule, harmless
from verst.sync.replay.selection import choice_sources


def megatron_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments. Raises ValueError for a configuration that they cannot express."""
    return {**deepseek_v32.sparse_args(config), **_sharing_args(choice_sources(config))}


def _sharing_args(sources: Sequence[int]) -> dict[str, ArgumentValue]:
    """Megatron's arguments for the layers that choose: layers 1 to `offset`, and after them every `freq`-th.

    Raises ValueError for other patterns.
    """
    layers = len(sources)
    choosing = [*sorted(set(sources)), layers]
    shared = next((i for i, source in enumerate(sources) if source != i), None)
    if shared is None:
        return {}
    offset, frequency = shared, choosing[choosing.index(shared - 1) + 1] - (shared - 1)
    expected = [i for i in range(layers) if max(i + 1 - offset, 0) % frequency == 0]
    if choosing[:-1] != expected:
        raise ValueError(
            f"config.json: layers {choosing[:-1]} choose what is attended to; Megatron could let {expected} choose, "
            "each followed by the same number of layers that share"
        )
    return {"dsa-indexer-topk-freq": frequency, "dsa-indexer-skip-topk-offset": offset}


def frozen(config: HfConfig, i: int) -> Sequence[Rule]:
    """Rules of the router's bias in layer i, and of its indexer if it has one."""
    of = deepseek_v32 if choice_sources(config)[i] == i else deepseek_v3
    return of.frozen(config, i)


def left_out(config: HfConfig, name: str) -> bool:
    """Also the weights of an indexer in a layer that shares a choice: nobody runs it."""
    shared = {
        f"model.layers.{i}.self_attn.indexer"
        for i, source in enumerate(choice_sources(config))
        if source != i
    }
    return harmless(config, name) or name.partition(".indexer.")[0] + ".indexer" in shared


FAMILY = Family(
    "glm_moe_dsa",
    ("GlmMoeDsaForCausalLM",),
    megatron_args,
    llama.embedding,
    llama.head,
    deepseek_v3.layer,
    deepseek_v3.engine_fault,
    frozen=frozen,
    together=deepseek_v3.together,
    left_out=left_out,
    model_types=("glm_moe_dsa",),
)

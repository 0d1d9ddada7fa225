"""Megatron's options that decide which function of its weights a model computes.

The model's family sets those that its checkpoint needs and leaves the others at Megatron's default. A recipe may only
repeat these values: with another one the trainer would compute another model than the engines, without an error.
"""

from __future__ import annotations

_SIZES = """
    num-layers encoder-num-layers decoder-num-layers hidden-size ffn-hidden-size num-attention-heads
    group-query-attention num-query-groups kv-channels vocab-size padded-vocab-size vocab-extra-ids
    make-vocab-size-divisible-by untie-embeddings-and-output-weights heterogeneous-layers-config-path
    heterogeneous-layers-config-encoded-json spec is-hybrid-model hybrid-layer-pattern hybrid-override-pattern
    mamba-state-dim mamba-head-dim mamba-num-groups mamba-num-heads mtp-use-repeated-layer mtp-hybrid-override-pattern
"""

_LAYERS = """
    normalization norm-epsilon apply-layernorm-1p apply-residual-connection-post-layernorm disable-bias-linear
    add-qkv-bias swiglu openai-gelu squared-relu quick-geglu glu-linear-offset activation-func-clamp-value
    use-mup mup-width-mult mup-base-hidden-size mup-embedding-mult mup-output-mult mup-base-head-dim
    mup-attn-scale-power
"""

_ATTENTION = """
    softmax-type qk-layernorm qk-l2-norm apply-query-key-layer-scaling attention-output-gate window-size
    window-attn-skip-freq multi-latent-attention q-lora-rank kv-lora-rank qk-head-dim qk-pos-emb-head-dim v-head-dim
    mla-down-proj-fusion experimental-attention-variant linear-attention-freq linear-conv-kernel-dim
    linear-key-head-dim linear-value-head-dim linear-num-key-heads linear-num-value-heads dsa-indexer-n-heads
    dsa-indexer-head-dim dsa-indexer-topk dsa-indexer-topk-freq dsa-indexer-skip-topk-offset
    dsa-indexer-rope-interleaved no-dsa-indexer-rotate-activation disable-dsa-indexer-rotate-activation
    no-dsa-indexer-scoring-relu disable-dsa-indexer-scoring-relu dsa-indexer-k-norm-epsilon
"""

_POSITIONS = """
    position-embedding-type no-position-embedding use-rotary-position-embeddings rope-type rotary-base rotary-percent
    rotary-interleaved rotary-seq-len-interpolation-factor rotary-scaling-factor use-rope-scaling rope-scaling-factor
    no-rope-freq mscale mscale-all-dim yarn-original-max-position-embeddings yarn-beta-fast yarn-beta-slow
    yarn-correction-range-round-to-int no-yarn-correction-range-round-to-int mrope-section
    relative-attention-num-buckets relative-attention-max-distance
"""

_EXPERTS = """
    num-experts moe-layer-freq moe-ffn-hidden-size moe-latent-size moe-shared-expert-intermediate-size
    moe-shared-expert-gate moe-shared-expert-glu-interleave-size moe-mlp-glu-interleave-size moe-router-topk
    moe-router-num-groups moe-router-group-topk moe-router-pre-softmax moe-router-topk-scaling-factor
    moe-router-score-function moe-router-enable-expert-bias moe-router-force-load-balancing moe-router-force-biased
    moe-apply-probs-on-input moe-input-jitter-eps moe-expert-capacity-factor moe-expert-rank-capacity-factor
    moe-use-upcycling
"""

ARCHITECTURE = tuple("".join((_SIZES, _LAYERS, _ATTENTION, _POSITIONS, _EXPERTS)).split())

# Options that a family sets although the checkpoint does not fix them. A recipe may override these.
PREFERENCES = ("moe-router-load-balancing-type", "moe-aux-loss-coeff", "hidden-dropout")

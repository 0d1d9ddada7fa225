"""A model folder's config.json as transformers reads it, and the family that it belongs to.

A config.json may leave keys out. Their values are then the defaults of transformers' configuration class, which the
engines use too. So a family gets the completed configuration, and never a default of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verst.sync.hf.folder import read_config
from verst.sync.layout.mapping import Family, HfConfig, family_for

# Keys that SGLang 0.5.17 reads in every config.json, but transformers' class of these families does not have, and the
# trainer neither: with the values that change nothing. Without any, the key may not be there at all.
_OF_ENGINES_ALONE: Mapping[str, tuple[Any, ...]] = {
    "final_logit_softcapping": (None,),
    "scale_emb": (1,),
    "rope_is_neox_style": (True,),
    "bias": (False, None),
    "dual_chunk_attention_config": (None,),
    "sparse_attention_config": (None,),
    "add_full_attention_sink_bias": (False, None),
    "is_hybrid_swa": (False, None),
    "attention_projection_layout": (None,),
    "num_attention_heads_per_layer": (None,),
    "attention_other_setting": (),
    "swa_num_key_value_heads": (),
    "swa_head_dim": (None,),
    "swa_v_head_dim": (None,),
    "original_num_attention_heads": (),
    "target_hidden_size": (),
    "use_ngram_embedding": (False, None),
    "n_shared_experts": (None, 0),
    "shared_expert_intermediate_size": (None, 0),
    "routing_method_type": (),
    "num_hash_layers": (0,),
    "swiglu_limit": (None,),
    "llama_4_scaling": (None,),
    "cli_factor": (1,),
    "hc_mult": (1,),
    "compress_ratios": (None,),
    "text_config": (),
    "llm_config": (),
    "language_config": (),
    "thinker_config": (),
}


def read_model(folder: Path | str, dotted: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The family of a model folder and its completed configuration. Raises ValueError as `model_of` does."""
    return model_of(read_config(folder), dotted)


def model_of(config: HfConfig, dotted: str | None = None) -> tuple[Family, dict[str, Any]]:
    """Finds the family of a config.json (`dotted`: the recipe's own) and completes it.

    Raises ValueError if there is no such family, or if the configuration means different models to different readers.
    It names the key.
    """
    family = family_for(config, dotted)
    refuse_quantised(config)
    return family, completed(config, family)


def refuse_quantised(config: HfConfig) -> None:
    """Raises ValueError for a quantised checkpoint: a trainer that read its codes would leave out the scales."""
    for key in ("quantization_config", "compression_config"):
        settings = config.get(key)
        if settings:
            method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
            raise ValueError(
                f"config.json: {key} (quant_method {method!r}): the weights are quantised, but training starts from "
                "unquantised ones. `verst convert THIS NEW --format bf16` restores them: set model.path to NEW; "
                "rollout.model_path may be the quantised folder, for the engines"
            )


def completed(config: HfConfig, family: Family) -> dict[str, Any]:
    """The configuration with the defaults of the family's class in transformers.

    The positions are in `rope_parameters` alone, in today's form, however config.json writes them. A family that
    names no `model_types` gets config.json as it is. Raises ValueError for another `model_type`, and for what
    transformers refuses.
    """
    if not family.model_types:
        return dict(config)
    model_type = config.get("model_type", family.model_types[0])
    if model_type not in family.model_types:
        raise ValueError(
            f"config.json: model_type = {model_type!r}, but architectures names the family {family.name}, whose "
            f"model_type is {' or '.join(family.model_types)}: engines and trainer would read different models"
        )
    _refuse_two_positions(config)
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family.model_types[0]]
    try:
        made = kind(**json.loads(json.dumps(dict(config))))  # a copy, because it changes what it is given
    except (
        StrictDataclassError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ZeroDivisionError,
    ) as error:
        raise ValueError(f"config.json: transformers' {kind.__name__} refuses it: {error}") from error
    full = {**config, **made.to_dict()}
    _refuse_keys_of_engines(config, kind().to_dict())
    for name, held_as in kind.attribute_map.items():
        full[name] = full[held_as]
    for key in ("rope_scaling", "rope_theta"):
        full.pop(key, None)  # they are in rope_parameters now
    return full


def _refuse_keys_of_engines(config: HfConfig, of_class: Mapping[str, Any]) -> None:
    """Raises ValueError for a key that only the engines would follow. `of_class`: the keys that transformers has."""
    for key, neutral in _OF_ENGINES_ALONE.items():
        if key in config and key not in of_class and config[key] not in neutral:
            raise ValueError(
                f"config.json: {key} = {config[key]!r}: the engines (SGLang) follow this key, transformers and the "
                "trainer do not know it for this family, so they would compute different models: leave it out"
            )


def _refuse_two_positions(config: HfConfig) -> None:
    """Raises ValueError for rotary positions that are given twice, differently."""
    scaling, parameters = config.get("rope_scaling"), config.get("rope_parameters")
    if scaling and parameters and scaling != parameters:
        raise ValueError(
            f"config.json: rope_scaling = {scaling} and rope_parameters = {parameters}: transformers and the engines "
            "read rope_scaling alone and ignore rope_parameters, its rope_theta too. Write everything into "
            "rope_parameters and leave rope_scaling out"
        )
    original = config.get("original_max_position_embeddings")
    rope = scaling or parameters or {}
    if original is None or not isinstance(rope, Mapping):
        return
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        return
    if rope.get("original_max_position_embeddings") != original:
        raise ValueError(
            f"config.json: original_max_position_embeddings = {original} stands beside "
            f"{'rope_scaling' if scaling else 'rope_parameters'} = {rope}, where not every reader sees it: move it "
            "in there"
        )

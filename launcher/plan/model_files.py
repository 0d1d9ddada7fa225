"""What lies in a model folder: its weights, by their headers, and its tokenizer. No weight is read."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from verst.launcher.plan.memory import in_words
from verst.sync.hf.headers import stored_tensors

# The files of which transformers makes a tokenizer; any one of them is enough.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
)
# What else decides how text becomes tokens.
_BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True)
class ModelFiles:
    """The contents of a model folder."""

    tensors: int
    files: int
    nbytes: int
    dtypes: tuple[str, ...]  # in safetensors' spelling, the most frequent first
    tokenizer: str | None  # the file that it is made of

    def in_words(self) -> str:
        """One line for people."""
        files = "1 file" if self.files == 1 else f"{self.files} files"
        return (
            f"{self.tensors} tensors ({', '.join(self.dtypes)}), {in_words(self.nbytes)} in {files}; "
            f"tokenizer: {self.tokenizer or 'none'}"
        )


def model_files(folder: Path) -> ModelFiles:
    """Looks into a model folder. Raises ValueError if its weights cannot be read."""
    stored = stored_tensors(folder)
    dtypes = Counter(tensor.dtype for tensor in stored.values())
    return ModelFiles(
        tensors=len(stored),
        files=len({tensor.file for tensor in stored.values()}),
        nbytes=sum(tensor.end - tensor.begin for tensor in stored.values()),
        dtypes=tuple(dtype for dtype, _ in dtypes.most_common()),
        tokenizer=tokenizer_file(folder),
    )


def tokenizer_file(folder: Path) -> str | None:
    """The file of which the folder's tokenizer is made; None if there is none."""
    return next((name for name in _TOKENIZERS if (folder / name).is_file()), None)


def tokenizer_digest(folder: Path) -> str:
    """A digest of the files that make a model's tokenizer and its chat template, by name and content."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted({*_TOKENIZERS, *_BESIDE}):
        if (file := folder / name).is_file():
            digest.update(name.encode() + b"\0" + hashlib.blake2b(file.read_bytes()).digest())
    return digest.hexdigest()


def config_digest(folder: Path) -> str:
    """A digest of a model folder's config.json, by which a run knows its model again. Raises OSError without one."""
    return hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=16).hexdigest()

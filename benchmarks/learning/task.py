"""The toy task of the learning curves: reverse two digits. The reward is the share of digits at their place."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from verst.runtime.messages.sample import Group, Sample

DIGITS = 2


def tiny_dense(folder: Path) -> Path:
    """Writes a random Llama: 2 layers, hidden size 128, with a character tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from verst.runtime.data.models import character_tokenizer

    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=64, max_position_embeddings=256, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    ).float()  # fmt: skip
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


class Task:
    """The prompts, the right and wrong answers, and the reward."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        numbers = list(range(10**DIGITS))
        random.Random(0).shuffle(numbers)
        self.problems = [f"{n:0{DIGITS}d}" for n in numbers]

    def prompt(self, problem: str) -> list[int]:
        """Token ids of "reverse 42="."""
        return self.tokenizer.encode(f"reverse {problem}=", add_special_tokens=False)

    def reward(self, problem: str, ids: list[int]) -> float:
        """The share of digits at their place; nothing for an answer of another length."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if len(text) != DIGITS:
            return 0.0
        return sum(a == b for a, b in zip(text, problem[::-1], strict=True)) / DIGITS

    def demonstration(self, number: int, problem: str) -> Group:
        """The right answer, as a row of a supervised stage."""
        return Group(id=-1 - number, samples=[self._row(number, 0, problem, problem[::-1])])

    def pair(self, number: int, problem: str, draw: random.Random) -> Group:
        """The right answer and one with another digit somewhere, as a row of a stage of pairs."""
        right, place = problem[::-1], draw.randrange(DIGITS)
        other = draw.choice([digit for digit in "0123456789" if digit != right[place]])
        wrong = right[:place] + other + right[place + 1 :]
        answers = [self._row(number, i, problem, text) for i, text in enumerate((right, wrong))]
        return Group(id=-1 - number, samples=answers)

    def _row(self, number: int, index: int, problem: str, text: str) -> Sample:
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
        zeros = np.zeros(len(ids), np.float32)
        return Sample(
            group=-1 - number, index=index, prompt_ids=np.array(self.prompt(problem), np.int32),
            response_ids=np.array(ids, np.int32), logprobs=zeros, loss_mask=np.ones(len(ids), np.uint8),
            weight_versions=np.zeros(len(ids), np.int32), reward=0.0, finish="stop",
            signals={"temperature": zeros + 1},
        )  # fmt: skip

"""A reward model behind HTTP: the reward gets the score that transformers computes, or says why there is none."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path

import pytest
from aiohttp import web

from verst.runtime.data.models import character_tokenizer
from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.score import Score
from verst.runtime.rewards.remote import ServiceError, remote

module = sys.modules["verst.runtime.rewards.remote"]  # the package has a function of this name


@pytest.mark.long
def test_a_served_reward_model_scores_the_last_token_of_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers as hf

    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "examples"))
    application = importlib.import_module("reward_model_server").application
    torch.manual_seed(0)
    tokenizer = character_tokenizer()
    config = hf.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        num_labels=1, pad_token_id=None,
    )  # fmt: skip
    model = hf.LlamaForSequenceClassification(config).float().eval()
    model.score.weight.data.normal_()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def answer(text: str, *more: str) -> Answer:
        ids = [tokenizer.convert_tokens_to_ids(token) for token in (*text, *more)]
        return Answer(text=text, prompt="<|start|>1+1=<|end|><|start|>", ids=ids)

    ended, cut, other = answer("2", "<|end|>"), answer("23"), Answer(text="2", prompt="1", ids=[9, 9])

    async def run() -> list[Score | BaseException]:
        runner = web.AppRunner(application(str(tmp_path)))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/score"
        found = await asyncio.gather(
            *(remote(a, url=url) for a in (ended, cut, other)), return_exceptions=True
        )
        for client in module._clients.values():
            await client.session.close()
        module._clients.clear()
        await runner.cleanup()
        return found

    scored, of_cut, refused = asyncio.run(run())
    for found, given in ((scored, ended), (of_cut, cut)):
        ids = tokenizer(given.prompt, add_special_tokens=False)["input_ids"] + given.ids
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            expected = (hidden @ model.score.weight[0]).item()
        assert isinstance(found, Score)
        assert abs(expected) > 1e-2
        assert found.value == pytest.approx(expected, abs=1e-5)
    assert isinstance(refused, ServiceError)
    assert "status 400" in str(refused)
    assert "another text here" in str(refused)

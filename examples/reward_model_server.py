"""Scores answers with a reward model, for the reward `verst.runtime.rewards:remote`: one process, one answer at a time.

    .venv/bin/python examples/reward_model_server.py runs/reward-model/export --port 8000

It must have the policy's tokenizer: an answer whose tokens are another text here is refused.
"""

import argparse
import asyncio

import torch
from aiohttp import web
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def application(folder: str) -> web.Application:
    """The service: an `Answer` as JSON in a POST to /score gets a number."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    turn = asyncio.Lock()

    def score(ids: list[int]) -> float:
        with torch.inference_mode():
            return model(torch.tensor([ids], device=model.device)).logits.item()

    async def handle(request: web.Request) -> web.Response:
        answer = await request.json()
        text = tokenizer.decode(answer["ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if text != answer["text"]:
            return web.Response(status=400, text="the tokens of this answer are another text here")
        prompt = tokenizer(answer["prompt"], add_special_tokens=False)["input_ids"]
        async with (
            turn
        ):  # the score is that of the last token: what ended the turn, or the last one before a limit
            return web.json_response(await asyncio.to_thread(score, prompt + answer["ids"]))

    app = web.Application(client_max_size=16 << 20)
    app.router.add_post("/score", handle)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="the export of a run that trained a reward model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    web.run_app(application(given.folder), host=given.host, port=given.port)

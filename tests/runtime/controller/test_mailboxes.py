"""Prompts wait for the engine they are for, and wake no other."""

from __future__ import annotations

import asyncio

from verst.runtime.controller.service import Mailboxes
from verst.runtime.messages.jobs import Prompt, PromptJob


def job(id: int) -> PromptJob:
    prompt = Prompt(ids=[1], text="x", label="", metadata={})
    return PromptJob(id=id, prompt=prompt, samples=1, evaluation=False, seeds=[0])


def test_a_delivery_reaches_its_engine_before_or_after_it_asks():
    async def work() -> None:
        mail = Mailboxes()
        mail.deliver(0, [job(1)])
        mail.deliver(0, [job(2)])
        assert [j.id for j in await mail.collect(0, 5)] == [1, 2]
        first, other = asyncio.ensure_future(mail.collect(0, 5)), asyncio.ensure_future(mail.collect(1, 0.3))
        await asyncio.sleep(0.05)
        mail.deliver(0, [job(3)])
        assert [j.id for j in await first] == [3]
        assert not other.done()
        assert await other == []

    asyncio.run(asyncio.wait_for(work(), 10))


def test_what_an_earlier_life_of_the_engine_did_not_fetch_is_dropped():
    async def work() -> None:
        mail = Mailboxes()
        waiting = asyncio.ensure_future(mail.collect(0, 0.3))
        await asyncio.sleep(0.05)
        mail.deliver(0, [job(1)])
        mail.clear(0)
        assert await waiting == []
        mail.deliver(0, [job(2)])
        assert [j.id for j in await mail.collect(0, 5)] == [2]

    asyncio.run(asyncio.wait_for(work(), 10))

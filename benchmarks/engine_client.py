"""What a call to an engine costs the worker that makes it, beside the same call by httpx.

    python benchmarks/engine_client.py --out benchmarks/results

A server in another process answers at once, with as much routing as asked for; 64 calls are in flight. Writes
engine_client.json: milliseconds of the caller's CPU time for each call, the median of rounds in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from verst.runtime.rollout.engine.client import EngineClient

IN_FLIGHT = 64
CONNECTIONS = 72
CALLS = 256
ROUNDS = 3
DEADLINE_S = 60
ROUTING_BYTES = (0, 164_000, 400_000)  # as text: 160 tokens of 24 layers, 384 of them, with 8 experts each
BODY = {"input_ids": list(range(128))}

Call = Callable[[], Awaitable[Any]]


def main() -> None:
    """All sizes, both clients in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = {str(size): both(size) for size in ROUTING_BYTES}
    figures = {
        "in_flight": IN_FLIGHT,
        "rounds": ROUNDS,
        "cpu_ms_per_call_by_bytes_of_routing": found,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("aiohttp", "httpx", "verst")},
        "date": datetime.date.today().isoformat(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "engine_client.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def both(size: int) -> dict[str, float]:
    """Of answers with so much routing."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(size, theirs), daemon=True)
    server.start()
    try:
        assert ours.poll(DEADLINE_S), "the server does not begin"
        url = f"http://127.0.0.1:{ours.recv()}"
        clients = {"verst": with_verst, "httpx": with_httpx}
        rounds = [{name: asyncio.run(client(url)) for name, client in clients.items()} for _ in range(ROUNDS)]
        return {name: statistics.median(one[name] for one in rounds) for name in clients}
    finally:
        server.kill()


def serve(size: int, told: Connection) -> None:
    """Answers as an engine does; tells its port."""
    tokens = {"output_token_logprobs": [[-1.234567, 5, None]] * 32, "routed_experts": "A" * size}
    answer = json.dumps({"output_ids": [1] * 32, "meta_info": tokens}).encode()

    async def generate(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=answer, content_type="application/json")

    async def begin() -> None:
        app = web.Application()
        app.router.add_post("/generate", generate)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        told.send(runner.addresses[0][1])
        await asyncio.Event().wait()  # until it is killed

    asyncio.run(begin())


async def with_verst(url: str) -> float:
    """By the client of this repository."""
    client = EngineClient(url, "key", CONNECTIONS)
    try:
        return await cost(lambda: client.post("/generate", BODY, DEADLINE_S))
    finally:
        await client.close()


async def with_httpx(url: str) -> float:
    """By httpx with as many connections."""
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=DEADLINE_S, trust_env=False) as client:

        async def call() -> Any:
            return (await client.post("/generate", json=BODY)).json()

        return await cost(call)


async def cost(call: Call) -> float:
    """CPU milliseconds of this process for each call."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with room:
            await call()

    await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))  # connects
    began = time.process_time()
    await asyncio.gather(*(one() for _ in range(CALLS)))
    return (time.process_time() - began) / CALLS * 1e3


if __name__ == "__main__":
    main()

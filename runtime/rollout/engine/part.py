"""The process on a further node of an engine over several nodes: runs SGLang's processes there while the engine lives.

Its index counts the nodes of the rollout group: it is part `index % nodes_per_engine` of engine
`index // nodes_per_engine`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.node.config import PlacementConfig
from verst.runtime.node.member_process import MemberProcess
from verst.runtime.rollout.config import RolloutConfig
from verst.runtime.rollout.engine.nodes import (
    Meeting,
    next_meeting,
    other_meeting,
    take_part,
    tell_failed,
)
from verst.runtime.rollout.engine.server import EngineServer, free_port
from verst.runtime.rollout.engine.start import start_server

log = logging.getLogger(__name__)
_HOST = "127.0.0.1"


async def main(process: MemberProcess) -> None:
    """Serves one meeting of the engine after another, until the node agent ends the process."""
    config = process.folder.section("rollout", RolloutConfig)
    engine, part = divmod(process.index, config.nodes_per_engine)
    within_s = config.start_timeout_s
    meeting = await next_meeting(process.folder, engine, None, within_s)
    while True:
        if not await asyncio.to_thread(take_part, process.folder, engine, part, meeting):
            await asyncio.to_thread(
                tell_failed, process.folder, engine, meeting, f"part {part} was started again"
            )
            meeting = await next_meeting(process.folder, engine, meeting.id, within_s)
            continue
        log.info("part %d of engine %d meets at %s", part, engine, meeting.address)
        server = await _start(process, config, meeting, part)
        try:
            meeting = await _serve(process, engine, part, meeting, server, within_s)
        finally:
            await server.kill()


async def _start(process: MemberProcess, config: RolloutConfig, meeting: Meeting, part: int) -> EngineServer:
    folder = process.folder
    algorithm = folder.section("algorithm", AlgorithmConfig)
    name = f"sglang-part-{process.index}.log"
    server, _ = await start_server(
        folder.section("model", ModelConfig),
        config,
        log=process.log_folder() / name,
        routing=algorithm.routing_replay == "rollout",
        seed=algorithm.seed,
        device=None,
        threads=int(os.environ.get("OMP_NUM_THREADS", "1")),
        host=_HOST,
        port=free_port(_HOST),
        key=secrets.token_hex(32),  # nobody sends requests to this part
        meeting=meeting,
        part=part,
        shares_gpus=folder.section("placement", PlacementConfig).layout == "colocated",
    )
    return server


async def _serve(
    process: MemberProcess, engine: int, part: int, meeting: Meeting, server: EngineServer, within_s: float
) -> Meeting:
    """Waits until the engine starts again; returns its new meeting. After a failure here, waits at most `within_s`."""
    dead = asyncio.create_task(server.wait_dead())
    another = asyncio.create_task(other_meeting(process.folder, engine, than=meeting.id))
    await asyncio.wait({dead, another}, return_when=asyncio.FIRST_COMPLETED)
    if dead.done() and not another.done():
        why = f"part {part} of engine {engine}: {dead.result()}"
        log.error("%s", why)
        await asyncio.to_thread(tell_failed, process.folder, engine, meeting, why.splitlines()[0])
        another.cancel()
        return await next_meeting(process.folder, engine, meeting.id, within_s)
    dead.cancel()
    return another.result()


if __name__ == "__main__":
    MemberProcess.run(main)

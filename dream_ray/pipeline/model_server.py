"""The server of the judge model that `dream-ray serve` starts: ray.serve.llm's, whose engine is ended before its process.

Contract: importing it imports Ray and vLLM. ray.serve.llm (2.60) leaves the engine running when a replica shuts down: Ray then
kills the engine's processes with the replica's, and their shared memory, 400 MiB for a model on a CPU, stays in /dev/shm.
"""

import asyncio

from ray.serve.llm.deployment import LLMServer

ENDS_WITHIN_S = 40.0
"""How long the engine's processes may take to end before they are killed, which leaves their shared memory: 7 s on free cores,
14 s beside six processes that compute."""
REPLICA_ENDS_WITHIN_S = ENDS_WITHIN_S + 10
"""How long Serve is to give the replica (20 s unless told); `serve.delete` waits for 60 s."""


class JudgeModelServer(LLMServer):
    """See the module's contract."""

    async def __del__(self) -> None:
        """Called by Serve before it lets the replica go."""
        client = getattr(getattr(self, "engine", None), "_engine_client", None)
        if client is not None:
            await asyncio.to_thread(client.shutdown, ENDS_WITHIN_S)
        await super().__del__()

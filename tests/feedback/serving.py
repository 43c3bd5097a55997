"""The scorer's real interface over real HTTP without Ray: for tests of those who call it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from dream_ray.chat.protocol import ChatModel
from dream_ray.config import ImageConfig
from dream_ray.feedback.api import make_api
from dream_ray.feedback.items import ItemJudge


@contextmanager
def served(chat: ChatModel, token: str | None = None, opens_uris: bool = False) -> Iterator[str]:
    """The address of a scorer with this judge."""
    api = make_api(ItemJudge(chat, ImageConfig(), opens_uris), token, 2_000_000, lambda results, seconds: None)
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()

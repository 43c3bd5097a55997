"""The scorer: the rubric behind HTTP on Ray Serve, with the judge inside its replicas.

Contract: POST /v1/score judges up to MAX_ITEMS answers and returns one result per item in order; an item that cannot
be judged has `judgement: null` and a reason, and does not touch its neighbours. GET /healthz asks the judge a real
question. A request that breaks the limits gets 422 and a message without the request's texts. `start_scorer` and
`stop_scorer` own the Serve instance of the cluster; the listener is on loopback, because the scorer opens the image
uris that it is given.
"""

import asyncio
import socket
import time
from dataclasses import asdict, dataclass

import httpx
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.schema import LoggingConfig

from dream_ray.chat.ask import AskFailed, Usage, all_of, ask
from dream_ray.chat.factory import ChatServices, chat_options, make_chat
from dream_ray.chat.parse import parse_verdict
from dream_ray.chat.protocol import ChatModel, ChatRequest, Task
from dream_ray.config import ImageConfig, JudgeConfig
from dream_ray.feedback.rubric import JudgeItem, Unjudged, judge
from dream_ray.feedback.wire import ScoreItem, ScoreRequest, ScoreResponse, ScoreResult, explain
from dream_ray.images import BadImage
from dream_ray.stored_images import read_image

APP = "dream-ray-scorer"
"""The name of the Serve application."""
HOST = "127.0.0.1"
"""Loopback only: whoever reaches the scorer can make it open files."""
MAX_ONGOING_REQUESTS = 32
"""Requests in a replica at once. Serve's default of 5 would starve a judge that mostly waits for an endpoint; more than
this queues in the proxy."""
HEALTHY_WITHIN_S = 120
"""How long a deployed replica may take until its first good answer; it has loaded its judge by then."""

PROBE = {"text": "What is the capital of France?", "response": "The capital of France is Paris."}
"""The question that /healthz puts to the judge."""

api = FastAPI(title="dream_ray scorer")


@api.exception_handler(RequestValidationError)
async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
    """422 with what is wrong and where; FastAPI's own reply would send the offending text back."""
    message = f"The request cannot be scored: {explain(error.errors())}. feedback/wire.py has the form and the limits."
    return JSONResponse({"detail": message}, status_code=422)


async def health(chat: ChatModel) -> tuple[int, dict[str, str]]:
    """The HTTP status and body that tell how a judge is, found by asking it."""
    try:
        await ask(chat, ChatRequest(Task.VERDICT, PROBE, fresh=True), parse_verdict, Usage())
    except AskFailed as failure:
        return 503, {"status": "failing", "judge": chat.name, "reason": failure.reason, "detail": failure.detail}
    return 200, {"status": "ok", "judge": chat.name}


@serve.deployment(name="Scorer", max_ongoing_requests=MAX_ONGOING_REQUESTS)
@serve.ingress(api)
class Scorer:
    """One replica: a judge and the limits on images."""

    def __init__(self, config: JudgeConfig, images: ImageConfig, services: ChatServices):
        self._images = images
        self._chat = make_chat(config.chat, services)

    @api.post("/v1/score")
    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Judge all items at once; results in the order of the items."""
        return ScoreResponse(results=tuple(await all_of([self._one(item) for item in request.items])))

    @api.get("/healthz")
    async def healthz(self) -> JSONResponse:
        """200 if the judge answers a trivial question readably, 503 and the reason if not."""
        status, body = await health(self._chat)
        return JSONResponse(body, status_code=status)

    async def _one(self, item: ScoreItem) -> ScoreResult:
        try:
            images = [await asyncio.to_thread(read_image, uri, self._images) for uri in item.images]
        except BadImage as error:
            return ScoreResult(judgement=None, reason=error.reason, detail=error.detail)
        outcome = await judge(
            JudgeItem(item.rollout_id, item.prompt_id, item.text, tuple(images), item.observations, item.response),
            self._chat,
        )
        if isinstance(outcome, Unjudged):
            return ScoreResult(judgement=None, **asdict(outcome))
        return ScoreResult(judgement=outcome)


@dataclass(frozen=True)
class ScorerHandle:
    """A running scorer: the address in front of /v1/score, and the name of its judge."""

    url: str
    judge: str


def start_scorer(config: JudgeConfig, images: ImageConfig, services: ChatServices) -> ScorerHandle:
    """Deploy the scorer on the Ray that this process is connected to, and wait until its judge answers.

    Raises RuntimeError where Serve already runs there (its listener cannot be moved) or where the judge gives no
    readable answer in time; Serve's own error passes through where a replica cannot start.
    """
    if serve.status().proxies:
        raise RuntimeError(
            f"Ray Serve already runs on this Ray, with the applications [{', '.join(serve.status().applications)}], "
            "so the scorer cannot have a listener of its own. End the other run, or if it has died call "
            "dream_ray.feedback.scorer.stop_scorer(), which shuts Serve down."
        )
    port = _free_port()
    # One log line a request would bury the run's own; failures are in the errors table.
    quiet = LoggingConfig(enable_access_log=False)
    serve.start(http_options={"host": HOST, "port": port}, logging_config=quiet)
    url = f"http://{HOST}:{port}"
    try:
        # mypy sees the class; the decorators have made it a Deployment.
        deployment = Scorer.options(  # type: ignore[attr-defined]
            num_replicas=config.replicas,
            logging_config=quiet,
            ray_actor_options=chat_options(config.chat, config.replicas),
        )
        serve.run(deployment.bind(config, images, services), name=APP, route_prefix="/")
        return ScorerHandle(url, _wait_until_healthy(url))
    except BaseException:
        stop_scorer()
        raise


def stop_scorer() -> None:
    """Take the scorer down and Serve with it. No error where none runs."""
    if APP in serve.status().applications:
        serve.delete(APP)
    serve.shutdown()


def _wait_until_healthy(url: str) -> str:
    """The judge's name, once /healthz says ok."""
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    last = "no answer"
    with httpx.Client(trust_env=False, timeout=HEALTHY_WITHIN_S) as client:
        while time.monotonic() < deadline:
            try:
                response = client.get(f"{url}/healthz")
            except httpx.TransportError as error:
                last = repr(error)
            else:
                if response.status_code == 200:
                    return str(response.json()["judge"])
                last = f"{response.status_code}: {response.text[:500]}"
            time.sleep(0.5)
    raise RuntimeError(
        f"The judge did not answer a trivial question readably within {HEALTHY_WITHIN_S} s; the last reply was {last}. "
        "Check the judge section of the config, and that its backend works on the machine that runs the replica."
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])

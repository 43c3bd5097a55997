"""The scorer on Ray Serve: api.py in replicas, each with its judge inside.

Contract: `start_scorer` and `stop_scorer` own the Serve instance of the cluster. The listener is on loopback unless the
config says otherwise, and then wants a token. A replica that dies takes the requests that it was working on with it: they
fail with 500, and who asks again is served by the others, or waits for the new one that Serve starts. So it is with a
replica whose judge's engine broke or hangs.
"""

import contextlib
import ipaddress
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from dream_ray.chat.factory import ChatServices, chat_options, make_chat
from dream_ray.config import ImageConfig, JudgeConfig, secret
from dream_ray.feedback.api import make_api
from dream_ray.feedback.client import authorization
from dream_ray.feedback.items import ItemJudge
from dream_ray.feedback.measures import Measures

APP = "dream-ray-scorer"
"""The name of the Serve application."""
MAX_ONGOING_REQUESTS = 32
"""Requests in a replica at once. Serve's default of 5 would starve a judge that mostly waits for an endpoint; more than
this queues in the proxy."""
TARGET_ONGOING_REQUESTS = 4
"""Where replicas follow the load: as many as keep each at this many requests. One holds up to 64 items and each of
these asks several questions, so that four fill what a judge bears at once."""
HEALTH_CHECK_PERIOD_S = 2.0
"""Between two looks at whether a replica's judge is alive, which cost nothing: with Serve's 10 s a replica whose engine has
died would answer with errors for half a minute."""
HEALTHY_WITHIN_S = 120
"""How long a deployed replica may take until its first good answer; it has loaded its judge by then."""


@serve.deployment(name="Scorer", max_ongoing_requests=MAX_ONGOING_REQUESTS, health_check_period_s=HEALTH_CHECK_PERIOD_S)
@serve.ingress()
class Scorer:
    """One replica: a judge, and the interface in front of it."""

    def __init__(self, config: JudgeConfig, images: ImageConfig, services: ChatServices):
        self._config = config
        self._judge = ItemJudge(make_chat(config.chat, services), images, config.opens_uris)

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve in the replica, so that the token is read there and travels nowhere."""
        token = secret(self._config.token_env, "judge.token_env")
        return make_api(self._judge, token, self._config.max_body_bytes, Measures().record)

    def check_health(self) -> None:
        """Called by Serve every `HEALTH_CHECK_PERIOD_S`; after three times in a row that it raises, Serve takes another
        replica for this one. Raises where the judge's engine broke or hangs, not where an endpoint is down."""
        self._judge.chat.check_alive()


@dataclass(frozen=True)
class ScorerHandle:
    """A running scorer: the address in front of /v1/score, and the name of its judge."""

    url: str
    judge: str


def start_scorer(
    config: JudgeConfig, images: ImageConfig, services: ChatServices, options: Mapping[str, Any] | None = None
) -> ScorerHandle:
    """Deploy the scorer on the Ray that this process is connected to, and wait until its judge answers.

    `options` are further ones of Ray for each replica.

    Raises ConfigError where the token's variable is not set, RuntimeError where Serve already runs there (its listener
    cannot be moved) or where the judge gives no readable answer in time; Serve's own error passes through where a
    replica cannot start.
    """
    headers = authorization(config.token_env)
    url = start_listener(config)
    try:
        return deploy_scorer(config, images, services, url, headers, options)
    except BaseException:
        stop_scorer()
        raise


def start_listener(config: JudgeConfig) -> str:
    """Start Serve with a listener as configured, and no application yet; its address as callers here reach it."""
    if serve.status().proxies:
        raise RuntimeError(
            f"Ray Serve already runs on this Ray, with the applications [{', '.join(serve.status().applications)}], "
            "so the scorer cannot have a listener of its own. End the other run, or if it has died call "
            "dream_ray.feedback.scorer.stop_scorer(), which shuts Serve down."
        )
    port = config.port or _free_port(config.host)
    # One log line a request would bury the run's own; failures are in the errors table.
    # On a busy machine the listener may not be up within the 15 s that Serve gives it. Serve then starts another, with more
    # time; who deploys the scorer waits for its answer.
    with contextlib.suppress(ray.exceptions.ActorDiedError):
        serve.start(http_options={"host": config.host, "port": port}, logging_config=_quiet())
    return f"http://{_reachable(config.host)}:{port}"


def deploy_scorer(
    config: JudgeConfig,
    images: ImageConfig,
    services: ChatServices,
    url: str,
    headers: dict[str, str],
    options: Mapping[str, Any] | None = None,
) -> ScorerHandle:
    """Deploy the scorer behind the listener at `url`; see `start_scorer`."""
    serve.run(scorer_application(config, images, services, options), name=APP, route_prefix="/")
    return ScorerHandle(url, _wait_until_healthy(url, headers))


def scorer_application(
    config: JudgeConfig, images: ImageConfig, services: ChatServices, options: Mapping[str, Any] | None = None
) -> Any:
    """The scorer as a Serve application, to be deployed behind any listener."""
    # mypy sees the class; the decorators have made it a Deployment.
    deployment = Scorer.options(  # type: ignore[attr-defined]
        **scaling(config),
        logging_config=_quiet(),
        ray_actor_options={**chat_options(config.chat, config.most_replicas), **(options or {})},
    )
    return deployment.bind(config, images, services)


def stop_scorer() -> None:
    """Take the scorer down and Serve with it, with whatever else runs there. No error where none runs."""
    try:
        # One by one: `serve.shutdown` waits for 30 s in all and kills what is left, an engine too that is about to end.
        for name in sorted(serve.status().applications, key=lambda name: name != APP):
            serve.delete(name)
    finally:
        serve.shutdown()


def scaling(config: JudgeConfig) -> dict[str, Any]:
    """Serve's options for the number of replicas."""
    if config.autoscale is None:
        return {"num_replicas": config.replicas}
    least, most = config.autoscale
    return {
        "autoscaling_config": {
            "min_replicas": least,
            # One at the start all the same: who starts a scorer is told at once whether its judge works.
            "initial_replicas": max(least, 1),
            "max_replicas": most,
            "target_ongoing_requests": TARGET_ONGOING_REQUESTS,
        }
    }


def metrics_urls() -> list[str]:
    """Where Prometheus finds each node's metrics, the scorer's among them (names in measures.py)."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]


def _wait_until_healthy(url: str, headers: dict[str, str]) -> str:
    """The judge's name, once /healthz says ok."""
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    last = "no answer"
    with httpx.Client(trust_env=False, timeout=HEALTHY_WITHIN_S, headers=headers) as client:
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


def _quiet() -> LoggingConfig:
    return LoggingConfig(enable_access_log=False)


def _reachable(host: str) -> str:
    """The address in a url for a host to listen on; one that stands for all of them is reached by the head's own,
    where Serve listens: this process may be on another node."""
    if host == "localhost":
        return host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host  # a name
    if address.is_unspecified:
        return str(ray.get_runtime_context().gcs_address.rsplit(":", 1)[0])
    return f"[{host}]" if address.version == 6 else host


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])

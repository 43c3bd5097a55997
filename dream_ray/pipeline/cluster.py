"""The connection to Ray and the scorer on it: opened for a run, closed whatever happens.

Contract: `connected` joins the cluster that RAY_ADDRESS names (a submitted job has it set) and starts one on this machine
where it is not set; it ends what it started. The scorer starts at its first use, and again at the next one after a stage
needed its place.
"""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import ray
from ray.data import DataContext

from dream_ray.config import Config, ConfigError
from dream_ray.cpu import WAITING
from dream_ray.pipeline import placement
from dream_ray.pipeline.joined import joined_cluster
from dream_ray.pipeline.nodes import wait_for_nodes
from dream_ray.pipeline.run import Run
from dream_ray.scratch import ScratchFolder

log = logging.getLogger(__name__)

WORKER_ENVIRONMENT = {
    # Models are read from folders; no worker asks a hub.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # The client of S3 calls it fatal when it asks a success for its error (pyarrow 26). What fails is raised all the same.
    "ARROW_S3_LOG_LEVEL": "OFF",
    **WAITING,
}
"""The environment of every worker of a run."""


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """Ray for the length of a run. Call it from the main thread, whose signal handlers it keeps."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with ExitStack() as afterwards:
        if joined_cluster():
            ray.init(runtime_env={"env_vars": WORKER_ENVIRONMENT}, logging_level=logging.WARNING)
            log.info("ray: joined the cluster at %s", ray.get_runtime_context().gcs_address)
        else:
            # What an actor leaves when Ray kills it, as it does with all of them at the end, goes with this folder.
            folder = afterwards.enter_context(ScratchFolder("ray"))
            # "local", or Ray would join whatever private cluster of another program it finds on this machine.
            ray.init(
                address="local",
                num_cpus=config.cluster.local_num_cpus,
                include_dashboard=True,  # Ray Train asks its state service, and complains twice a second without it
                runtime_env={"env_vars": WORKER_ENVIRONMENT | {"TMPDIR": folder}},
                logging_level=logging.WARNING,
            )
            log.info("ray: started on this machine, with %d logical CPUs", config.cluster.local_num_cpus)
        afterwards.callback(ray.shutdown)
        # Ray has put a handler of its own in front of ours, which aborts the process three seconds after a SIGTERM, in
        # the middle of whatever is being taken down.
        signal.signal(signal.SIGTERM, on_sigterm)
        _quiet_data()
        yield


def _quiet_data() -> None:
    """Ray Data's progress bars, plans and guesses give way to the stages' own progress lines."""
    context = DataContext.get_current()
    context.issue_detectors_config.detectors = []
    # Parts in the order of the pass: an engine on a CPU holds one policy at a time.
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # A task's own error reaches the driver, which tells a full disk from a bad setting; Ray Data would print it twice more.
    context.raise_original_map_exception = True
    for name in ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def scorer(run: Run) -> Iterator[Callable[[], str]]:
    """A function that gives the scorer's address and starts it where it does not stand; stopped at the end, and whenever
    the run releases it."""
    from dream_ray.feedback.scorer import ScorerHandle, start_scorer, stop_scorer

    config = run.config

    running: list[ScorerHandle] = []

    def url() -> str:
        if not running:
            run.require_budget()
            _require_reachable(config)
            wait_for_nodes("the scorer", [placement.judge(config)], config.cluster.wait_for_nodes_s)
            asked = placement.role_options(config, "judge")
            running.append(start_scorer(config.judge, config.images, run.services, asked))
            log.info("scorer: %s at %s", running[0].judge, running[0].url)
        return running[0].url

    def release() -> None:
        if running:
            running.clear()
            stop_scorer()
            log.info("scorer: taken down")

    run.release_scorer = release
    try:
        yield url
    finally:
        if running:
            stop_scorer()


def _require_reachable(config: Config) -> None:
    """Raise ConfigError for a scorer on the head's loopback that is to be asked from other machines."""
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if config.judge.on_loopback and len(machines) > 1:
        raise ConfigError(
            f"judge.host = {config.judge.host!r} is reached from the head only, but answers are sent to the scorer from any of "
            f"the cluster's {len(machines)} machines. Set judge.host=0.0.0.0, judge.token_env to the name of a variable that "
            "holds a token on every machine, and judge.image_uris=true (configs/cluster.yaml does)."
        )

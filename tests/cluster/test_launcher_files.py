"""The cluster launcher's files against Ray's own schema and code, and against what the project promises of them."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.conftest import REPOSITORY

CLOUDS = ("aws", "gcp")
ANYBODY = ("0.0.0.0/0", "::/0")


def load(cloud: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster" / cloud / "cluster.yaml").read_text())
    return content


@pytest.fixture(params=CLOUDS)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def schema() -> dict[str, Any]:
    import ray.autoscaler

    content: dict[str, Any] = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    return content


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    jsonschema.validate(cluster, schema())
    validate_config(prepare_config(cluster))


def test_the_check_can_fail(cluster: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"idle_timeout": 5}, schema())


def test_nothing_runs_on_the_head_and_idle_costs_the_head_only(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head = types[cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]
    workers = {name: kind for name, kind in types.items() if name != cluster["head_node_type"]}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert 0 < cluster["idle_timeout_minutes"] <= 10


def test_spot_is_preferred_and_has_a_fallback_of_the_same_shape(cluster: dict[str, Any]) -> None:
    spot, fallback = (cluster["available_node_types"][name] for name in ("gpu-spot", "gpu-on-demand"))
    assert spot["priority"] > fallback["priority"]
    assert spot["resources"] == fallback["resources"]
    assert spot["resources"]["GPU"] > 0
    configs = spot["node_config"], fallback["node_config"]
    is_spot = [
        config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or config.get("scheduling", {}).get("provisioningModel") == "SPOT"
        for config in configs
    ]
    assert is_spot == [True, False]


def test_only_cpu_work_asks_for_machines_without_gpus(cluster: dict[str, Any]) -> None:
    assert cluster["available_node_types"]["cpu"]["resources"].get("GPU", 0) == 0


def test_packages_are_those_that_are_pinned(cluster: dict[str, Any]) -> None:
    assert any("setup_node.sh gpu.txt no-deps.txt" in command for command in cluster["setup_commands"])
    installs = [
        command
        for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")
        for command in cluster[key]
        if "pip install" in command
    ]
    assert installs
    assert all(re.search(r"pip install --quiet \S+==[\d.]+$", command) for command in installs)
    for local in cluster["file_mounts"].values():
        assert (REPOSITORY / local).is_dir()


def test_ray_starts_with_its_token_and_a_dashboard_on_loopback(cluster: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = cluster[key][-1]
        # `&&`: a node that cannot read its token must not start without one.
        assert re.match(r"source \S+/secrets\.sh \w+ \S+ && ", start)
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_nothing_is_open_to_the_world_and_no_secret_is_in_the_files() -> None:
    group = load("aws")["provider"]["security_group"]["IpPermissions"]
    ranges = [entry["CidrIp"] for rule in group for entry in rule["IpRanges"]]
    assert ranges
    assert not set(ranges) & set(ANYBODY)
    assert {(rule["FromPort"], rule["ToPort"]) for rule in group} == {(22, 22)}
    pattern = re.compile(
        r"AKIA[0-9A-Z]{16}|-----BEGIN|sk-[A-Za-z0-9]{20}|(token|password|api_key)\s*[:=]\s*['\"]?[A-Za-z0-9]{16}", re.I
    )
    for path in (REPOSITORY / "cluster").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert not pattern.search(path.read_text()), path


@pytest.mark.parametrize("name", ["policy-head.json", "policy-worker.json"])
def test_policies_name_what_they_allow(name: str) -> None:
    policy = json.loads((REPOSITORY / "cluster" / "aws" / name).read_text())
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*" and not all(action.startswith("ec2:Describe") for action in actions):
            assert "Condition" in statement or statement["Sid"] == "StartMachines"

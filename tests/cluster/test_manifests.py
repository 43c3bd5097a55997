"""The KubeRay manifests against Ray's own reader of them, Kubernetes' schemas and, where they are given, KubeRay's CRDs.

The CRDs are not part of the project: put KubeRay's helm-chart/kuberay-operator/crds into a folder and name it in
DREAM_RAY_KUBERAY_CRDS. Pods are checked where the package kubernetes-validate is installed.
"""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dream_ray.config import load_config
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "cluster" / "kuberay"
KINDS = {"raycluster": "RayCluster", "rayjob": "RayJob", "rayservice": "RayService"}


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return content


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster spec, wherever the kind keeps it."""
    spec = manifest["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def pods_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(manifest)
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.fixture(params=list(KINDS))
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def strict(schema: Any) -> Any:
    """An openAPIV3Schema as JSON schema that refuses unknown keys, as the API server's strict validation does."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return made


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_the_manifest_is_of_kuberays_schema(name: str, kind: str) -> None:
    folder = os.environ.get("DREAM_RAY_KUBERAY_CRDS", "")
    if not folder:
        pytest.skip("needs KubeRay's CRDs (set DREAM_RAY_KUBERAY_CRDS to the folder that holds them)")
    crd = yaml.safe_load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text())
    version = next(entry for entry in crd["spec"]["versions"] if entry["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    # The API server's own objects are described elsewhere.
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(load(name), schema)
    spelled_wrong = load(name)
    cluster_of(spelled_wrong)["autoscalerOption"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spelled_wrong, schema)


def test_pods_are_of_kubernetes_schema(manifest: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for template in pods_of(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"} | template["metadata"]}
        validator.validate(pod | {"spec": template["spec"]}, "1.31", strict=True)


def test_prerequisites_are_of_kubernetes_schema() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all((FOLDER / "prerequisites.yaml").read_text()):
        validator.validate(document, "1.31", strict=True)


def test_rays_autoscaler_reads_it(manifest: dict[str, Any]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    resource = {"metadata": {"name": "dream-ray", "namespace": "default"}, "spec": cluster_of(manifest)}
    derived = _derive_autoscaling_config_from_ray_cr(resource)
    validate_config(derived)
    types = derived["available_node_types"]
    assert types[derived["head_node_type"]]["resources"]["CPU"] == 0
    workers = [kind for name, kind in types.items() if name != derived["head_node_type"]]
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers)
    if manifest["kind"] != "RayService":
        assert sorted(kind["resources"].get("GPU", 0) for kind in workers) == [0, 1]


def test_the_cluster_asks_for_tokens_and_the_second_autoscaler(manifest: dict[str, Any]) -> None:
    cluster = cluster_of(manifest)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_versions_are_the_pinned_ones(manifest: dict[str, Any]) -> None:
    import ray

    assert cluster_of(manifest)["rayVersion"] == ray.__version__
    images = {box["image"] for pod in pods_of(manifest) for box in pod["spec"]["containers"]}
    assert images == {"REGISTRY/dream-ray:gpu-0.1.0"}


def test_containers_are_unprivileged_probed_and_get_secrets_by_reference(manifest: dict[str, Any]) -> None:
    for number, template in enumerate(pods_of(manifest)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is (number == 0)
        for box in (*spec.get("initContainers", ()), *spec["containers"]):
            assert box["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert box["resources"]["limits"].keys() >= {"cpu", "memory"}
        (box,) = spec["containers"]
        assert {"startupProbe", "livenessProbe"} <= box.keys()
        assert "readinessProbe" in box or manifest["kind"] == "RayService"
        for variable in box["env"]:
            assert "secretKeyRef" in variable["valueFrom"]


def test_every_name_that_pods_use_is_in_the_prerequisites(manifest: dict[str, Any]) -> None:
    there = {
        (document["kind"], document["metadata"]["name"])
        for document in yaml.safe_load_all((FOLDER / "prerequisites.yaml").read_text())
    }
    for template in pods_of(manifest):
        spec = template["spec"]
        used = {("ServiceAccount", spec["serviceAccountName"])}
        used |= {("ConfigMap", volume["configMap"]["name"]) for volume in spec["volumes"] if "configMap" in volume}
        boxes = (*spec.get("initContainers", ()), *spec["containers"])
        used |= {("ConfigMap", source["configMapRef"]["name"]) for box in boxes for source in box.get("envFrom", ())}
        assert used <= there
        mounted = {mount["name"] for box in boxes for mount in box["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_serve_accepts_the_services_config(tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    from dream_ray.feedback import application

    config = ServeDeploySchema.model_validate(yaml.safe_load(load("rayservice")["spec"]["serveConfigV2"]))
    (deployed,) = config.applications
    assert deployed.import_path == f"{application.__name__}:{application.build.__name__}"
    application.Arguments.model_validate(deployed.args)


def test_the_config_map_holds_a_config_that_works(tmp_path: Path) -> None:
    documents = yaml.safe_load_all((FOLDER / "prerequisites.yaml").read_text())
    (tree,) = (item["data"]["config.yaml"] for item in documents if item["metadata"]["name"] == "dream-ray-config")
    path = tmp_path / "config.yaml"
    path.write_text(tree.replace("/opt/dream_ray", str(REPOSITORY)))
    config = load_config(path)
    ports = {
        port["name"]: port["containerPort"] for port in pods_of(load("raycluster"))[0]["spec"]["containers"][0]["ports"]
    }
    assert config.judge.port == ports["serve"]
    environment = {item["name"] for item in pods_of(load("raycluster"))[0]["spec"]["containers"][0]["env"]}
    assert {config.judge.token_env, config.judge.chat.api_key_env} <= environment  # type: ignore[union-attr]
    assert config.student.model.startswith("/models/")

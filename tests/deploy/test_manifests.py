"""Dockerfile, compose files, Kubernetes manifests and HAProxy's configuration, each by the checker of its kind."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from chattts_client.watermark import KEY_VARIABLE

from chattts_serving.launcher.limits import threads_needed
from chattts_serving.launcher.options import parse_arguments
from chattts_serving.triton import reports
from gateway.process import running_gateway
from gateway.settings import parse
from tests.deploy.haproxy import CLUSTER, check_configuration

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKER = ROOT / "docker"
KUBERNETES = ROOT / "kubernetes"
OVERLAYS = ["cpu", "gpu"]


def checked(*command: str | Path) -> str:
    """The output of a checker of this environment, which must find nothing."""
    program = Path(sys.executable).parent / command[0]
    result = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@cache
def built(overlay: str) -> str:
    """The manifests of an overlay as they would be applied."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which puts the overlays together, is not installed")
    command = ["kubectl", "kustomize", str(KUBERNETES / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def objects(manifests: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Each object of `manifests` by kind and name."""
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(manifests)}


def pod_of(deployment: str, manifests: str) -> dict[str, Any]:
    spec: dict[str, Any] = objects(manifests)["Deployment", deployment]["spec"]["template"]["spec"]
    return spec


def watermark_key(pod: dict[str, Any]) -> Any:
    """Where the gateway of `pod` has the key of its watermark from."""
    return {one["name"]: one["valueFrom"]["secretKeyRef"] for one in pod["containers"][0]["env"]}[KEY_VARIABLE]


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    return content


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    checked("hadolint", DOCKER / "Dockerfile")


def test_what_the_build_needs_is_in_its_context() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert {"chattts_serving", "client", "gateway", "backends", "tests/load"} <= allowed
    assert not [
        path for path in ("export", "model_repository", "voices") if path in allowed
    ]  # nothing is exported there
    assert all((ROOT / path).exists() for path in allowed)
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        path for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE) for path in line.split()
    }
    inside = (*allowed, *(str(path.relative_to(ROOT)) for path in (ROOT / "client").iterdir()))
    assert copied - {"."} <= set(inside)


@pytest.mark.parametrize("image", OVERLAYS)
def test_images_serve_the_mounted_models_to_the_outside(image: str) -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    stage = re.search(rf"^FROM \S+ AS {image}$(.*?)(?=^FROM|\Z)", dockerfile, re.MULTILINE | re.DOTALL)
    assert stage
    entrypoint = re.search(r"^ENTRYPOINT (\[.*\])$", stage[1], re.MULTILINE)
    assert entrypoint
    _python, _m, module, *arguments = json.loads(entrypoint[1])
    assert module == "chattts_serving.server"
    options = parse_arguments(arguments)
    assert (options.model_repository, options.host, options.flags) == (Path("/models"), "0.0.0.0", ())


def test_the_gateways_health_check_asks_no_proxy(behind_a_proxy: None, tmp_path: Path) -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    [command] = [
        json.loads(one) for one in re.findall(r"^    CMD (\[.*\])$", dockerfile, re.MULTILINE) if "8080" in one
    ]
    with running_gateway("127.0.0.1:9", tmp_path / "log") as gateway:
        for url, status in ((gateway.url, 0), ("http://127.0.0.1:9", 1)):
            asked = [part.replace("http://127.0.0.1:8080", url) for part in command[1:]]
            assert subprocess.run([sys.executable, *asked], cwd=ROOT, check=False).returncode == status


def test_every_image_tells_onnx_runtime_to_send_nothing() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"^FROM (\S+) AS (\S+)$(.*?)(?=^FROM|\Z)", dockerfile, re.MULTILINE | re.DOTALL)
    silent: set[str] = set()
    for base, name, steps in stages:
        if base in silent or re.search(r"^ENV .*\bORT_DISABLE_TELEMETRY=1\b", steps, re.MULTILINE):
            silent.add(name)
    assert {name for _, name, _ in stages} == silent


@pytest.mark.parametrize("file", ["compose.yaml", "compose.tls.yaml"])
def test_compose_files_fit_the_compose_specification(file: str) -> None:
    checked("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / file)


def test_prometheus_reads_the_gateway_although_it_has_keys() -> None:
    """It has none of them."""
    (gateway,) = pod_of("chattts-gateway", built("cpu"))["containers"]
    for arguments in (compose()["services"]["gateway"]["command"], gateway["args"]):
        assert "--public-metrics" in arguments


def test_the_key_of_a_watermark_comes_from_where_the_gateways_keys_do() -> None:
    secret = next(one["secret"] for one in pod_of("chattts-gateway", built("cpu"))["volumes"] if one["name"] == "keys")
    key = watermark_key(pod_of("chattts-gateway", built("cpu")))
    assert key == {"name": secret["secretName"], "key": "watermark", "optional": True}
    assert compose()["services"]["gateway"]["environment"][KEY_VARIABLE] == f"${{{KEY_VARIABLE}:-}}"


def test_a_server_of_compose_may_have_the_threads_that_it_needs() -> None:
    allowed = compose()["x-server"]["pids_limit"]
    assert allowed >= threads_needed(len(list((ROOT / "model_repository").iterdir())), 256)


def test_compose_publishes_on_the_loopback_alone() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_files_that_compose_mounts_are_in_the_checkout() -> None:
    volumes = [volume for service in compose()["services"].values() for volume in service.get("volumes", [])]
    sources = [volume.split(":")[0] for volume in volumes if volume.startswith("./")]
    assert sources
    assert [source for source in sources if not (DOCKER / source).exists()] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_fit_the_schemas_of_kubernetes(overlay: str, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(built(overlay), encoding="utf-8")
    checked("kubernetes-validate", "--strict", tmp_path / "all.yaml")


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("deployment", ["chattts-server", "chattts-balancer", "chattts-gateway"])
def test_pods_run_without_privileges_on_a_read_only_file_system(overlay: str, deployment: str) -> None:
    pod = pod_of(deployment, built(overlay))
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize(("overlay", "gpus"), [("cpu", None), ("gpu", "1")])
def test_only_the_gpu_overlay_asks_for_a_gpu(overlay: str, gpus: str | None) -> None:
    (server,) = pod_of("chattts-server", built(overlay))["containers"]
    assert server["image"] == f"chattts-triton:{overlay}"
    assert server["resources"]["limits"].get("nvidia.com/gpu") == gpus


def test_a_server_is_ended_after_its_drain_and_not_before() -> None:
    pod = pod_of("chattts-server", built("cpu"))
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    drain_s, stop_s = int(command[command.index("--wait-idle") + 1]), 16
    assert pod["terminationGracePeriodSeconds"] >= drain_s + stop_s


def test_a_server_waits_until_no_name_service_leads_to_it() -> None:
    """CoreDNS keeps an answer for 30 s as kubeadm sets it up, and HAProxy asks every 2 s."""
    command = pod_of("chattts-server", built("cpu"))["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert float(command[command.index("--idle-for") + 1]) > 30 + 2


def test_a_gateway_is_ended_after_its_drain_and_not_before() -> None:
    pod = pod_of("chattts-gateway", built("cpu"))
    (gateway,) = pod["containers"]
    drain_s = parse([*gateway["args"], "--anonymous"][4:], {}).drain_timeout_s
    wait_s = int(gateway["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > wait_s + drain_s
    service = compose()["services"]["gateway"]
    drain_s = parse(service["command"], {}).drain_timeout_s
    assert int(service["stop_grace_period"].removesuffix("s")) > drain_s


def test_services_find_the_pods_that_are_meant() -> None:
    found = objects(built("cpu"))
    services = {
        "chattts": "chattts-balancer",
        "chattts-servers": "chattts-server",
        "chattts-gateway": "chattts-gateway",
    }
    for service, deployment in services.items():
        labels = found["Deployment", deployment]["spec"]["template"]["metadata"]["labels"]
        assert found["Service", service]["spec"]["selector"].items() <= labels.items()


def test_the_autoscaler_reads_a_gauge_that_the_server_has() -> None:
    scaler = objects(built("cpu"))["HorizontalPodAutoscaler", "chattts-server"]
    (metric,) = scaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    rules = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    assert [rule["name"]["as"] for rule in rules["rules"]["custom"]] == [name]
    assert name.removeprefix("chattts_") in reports.LOAD


def test_haproxy_takes_the_configuration_of_the_cluster() -> None:
    pod = pod_of("chattts-balancer", built("cpu"))
    values = {one["name"]: one.get("value", "default") for one in pod["containers"][0]["env"]}
    check_configuration(CLUSTER, values)

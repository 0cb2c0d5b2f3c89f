"""The example for KServe: its schemas, and what the launcher and the other manifests make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from chattts_serving.launcher.options import parse_arguments
from tests.deploy.kserve import CRDS, SCHEMAS, manifests
from tests.deploy.test_manifests import KUBERNETES, checked


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return {one["kind"]: one for one in manifests()}


@pytest.fixture(scope="module")
def container(found: dict[str, Any]) -> dict[str, Any]:
    """What KServe starts of the runtime."""
    (one,) = found["ServingRuntime"]["spec"]["containers"]
    assert one["name"] == "kserve-container"  # by which KServe knows it
    return one


@pytest.mark.parametrize("kind", CRDS)
def test_manifests_fit_the_schemas_of_kserve(kind: str, found: dict[str, Any]) -> None:
    validator = Draft7Validator(json.loads(SCHEMAS.read_text(encoding="utf-8"))[kind])
    spec = found[kind]["spec"]
    assert [error.message for error in validator.iter_errors(spec)] == []
    assert list(validator.iter_errors(spec | {"misspelt": {}}))
    assert list(validator.iter_errors(spec | dict.fromkeys(spec, 2)))


def test_the_service_fits_the_schema_of_kubernetes(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(found["Service"]), encoding="utf-8")
    checked("kubernetes-validate", "--strict", tmp_path / "service.yaml")


def test_the_service_names_a_runtime_and_a_protocol_that_are_there(found: dict[str, Any]) -> None:
    runtime, model = found["ServingRuntime"], found["InferenceService"]["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = [(one["name"], one["version"]) for one in runtime["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats


def test_the_launcher_serves_what_kserve_puts_there(container: dict[str, Any]) -> None:
    entrypoint = ["--model-repository=/models", "--host=0.0.0.0"]  # the image's (test_manifests.py)
    options = parse_arguments([*entrypoint, *container["args"]])
    assert options.model_repository == Path("/mnt/models")
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports == {"grpc": options.grpc_port, "http": options.http_port, "metrics": options.metrics_port}


def test_servers_are_probed_drained_and_confined_as_without_kserve(
    found: dict[str, Any], container: dict[str, Any]
) -> None:
    deployment = next(yaml.safe_load_all((KUBERNETES / "base" / "server.yaml").read_text(encoding="utf-8")))
    pod = deployment["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    for key in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "securityContext"):
        assert container[key] == server[key]
    predictor = found["InferenceService"]["spec"]["predictor"]
    for key in ("automountServiceAccountToken", "securityContext", "terminationGracePeriodSeconds"):
        assert predictor[key] == pod[key]
    assert predictor["deploymentStrategy"]["rollingUpdate"] == deployment["spec"]["strategy"]["rollingUpdate"]
    writable = [one for one in server["volumeMounts"] if not one.get("readOnly")]
    assert container["volumeMounts"] == writable
    volumes = found["ServingRuntime"]["spec"]["volumes"]
    assert volumes == [one for one in pod["volumes"] if one["name"] in {mount["name"] for mount in writable}]

"""The Helm chart: what kustomize makes, and what its values change."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.helm import CHART, ROOT, HelmError, template, templates
from tests.deploy.kserve import manifests
from tests.deploy.test_manifests import OVERLAYS, built, checked, objects, pod_of, watermark_key

CHANGED: dict[str, dict[str, Any]] = {
    "images": {
        "images": {
            "server": {"repository": "here:5000/speech", "tag": "1"},
            "pullPolicy": "Always",
            "pullSecrets": ["registry"],
        }
    },
    "server": {
        "device": "gpu",
        "server": {
            "args": ["--log-requests"],
            "drainSeconds": 60,
            "maxSurge": 0,
            "maxUnavailable": 1,
            "sharedMemory": "2Gi",
            "resources": {"gpu": {"limits": {"nvidia.com/gpu": "2"}, "requests": {"nvidia.com/gpu": "2"}}},
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
    },
    "no autoscaling": {"autoscaling": {"enabled": False}, "server": {"replicas": 3}},
    "autoscaling": {"autoscaling": {"minReplicas": 1, "maxReplicas": 4, "openRequests": 16}},
    "gateway": {"gateway": {"replicas": 5, "keysSecret": "mine", "args": ["--strict"], "drainSeconds": 0}},
    "no gateway": {"gateway": {"enabled": False}},
    "no server": {"server": {"enabled": False}},
    "balancer": {"balancer": {"replicas": 3}, "models": {"claim": "others"}},
}
REFUSED = {
    "device": {"device": "tpu"},
    "replicas": {"server": {"replicas": 0}},
    "keysSecret": {"gateway": {"keysSecret": ""}},
    "keySecret": {"gateway": {"keySecret": "misspelt"}},
    "drainSeconds": {"server": {"drainSeconds": "long"}},
}


@pytest.fixture(scope="module")
def changed() -> dict[str, str]:
    """What each of CHANGED makes."""
    found = dict(zip(CHANGED, templates(list(CHANGED.values())), strict=True))
    assert not [one for one in found.values() if isinstance(one, HelmError)], found
    return found


def plain(manifests: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The objects without the part of a name that stands for a configuration's content."""
    return objects(re.sub(r"\b(chattts-balancer)-[0-9a-z]{10}\b", r"\1-HASH", manifests))


@pytest.mark.parametrize("device", OVERLAYS)
def test_a_release_called_chattts_is_what_kustomize_makes(device: str) -> None:
    ours, kustomize = plain(template({"device": device})), plain(built(device))
    assert ours.keys() == kustomize.keys()
    for name, one in kustomize.items():
        assert ours[name] == one


def test_a_release_of_another_name_is_whole_and_shares_no_name() -> None:
    found = objects(template({}, release="second"))
    assert [name for _, name in found if not re.match(r"second($|-)", name)] == []
    workloads = [one for (kind, _), one in found.items() if kind == "Deployment"]
    apps = {one["spec"]["template"]["metadata"]["labels"]["app"] for one in workloads}
    assert apps == {one["metadata"]["name"] for one in workloads}
    for (kind, name), one in found.items():
        if kind == "Service":
            assert one["spec"]["selector"]["app"] in apps, name
        if kind in ("Deployment", "PodDisruptionBudget"):
            assert one["spec"]["selector"]["matchLabels"] == {"app": name}
    assert found["HorizontalPodAutoscaler", "second-server"]["spec"]["scaleTargetRef"]["name"] == "second-server"
    pods = {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in workloads}
    (configuration,) = pods["second-balancer"]["volumes"]
    assert ("ConfigMap", configuration["configMap"]["name"]) in found
    values = {one["name"]: one.get("value") for one in pods["second-balancer"]["containers"][0]["env"]}
    assert ("Service", values["CHATTTS_SERVERS"].split(".")[0]) in found
    arguments = pods["second-gateway"]["containers"][0]["args"]
    assert ("Service", arguments[arguments.index("--triton") + 1].split(":")[0]) in found


@pytest.mark.parametrize("name", CHANGED)
def test_whatever_is_said_fits_the_schemas_of_kubernetes(name: str, changed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(changed[name], encoding="utf-8")
    checked("kubernetes-validate", "--strict", tmp_path / "all.yaml")


def test_images_are_those_that_are_said(changed: dict[str, str]) -> None:
    for app in ("server", "balancer", "gateway"):
        pod = pod_of(f"chattts-{app}", changed["images"])
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["containers"][0]["imagePullPolicy"] == "Always"
    assert pod_of("chattts-server", changed["images"])["containers"][0]["image"] == "here:5000/speech:1"
    assert pod_of("chattts-gateway", changed["images"])["containers"][0]["image"] == "chattts-triton:gateway"


def test_servers_are_as_they_are_said(changed: dict[str, str]) -> None:
    deployment = objects(changed["server"])["Deployment", "chattts-server"]["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    pod = deployment["template"]["spec"]
    (server,) = pod["containers"]
    assert server["args"] == ["--log-requests"]
    assert server["resources"]["limits"] == {"memory": "12Gi", "nvidia.com/gpu": "2"}
    assert server["lifecycle"]["preStop"]["exec"]["command"][-4:] == ["--wait-idle", "60", "--idle-for", "35"]
    assert pod["terminationGracePeriodSeconds"] == 80
    assert (pod["nodeSelector"], pod["tolerations"]) == (
        CHANGED["server"]["server"]["nodeSelector"],
        CHANGED["server"]["server"]["tolerations"],
    )
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}} in pod["volumes"]
    claims = [
        one["persistentVolumeClaim"]["claimName"]
        for one in pod_of("chattts-server", changed["balancer"])["volumes"][:1]
    ]
    assert claims == ["others"]


def test_the_number_of_servers_is_the_autoscalers_or_what_is_said(changed: dict[str, str]) -> None:
    fixed, scaled = objects(changed["no autoscaling"]), objects(changed["autoscaling"])
    assert fixed["Deployment", "chattts-server"]["spec"]["replicas"] == 3
    assert ("HorizontalPodAutoscaler", "chattts-server") not in fixed
    assert "replicas" not in scaled["Deployment", "chattts-server"]["spec"]
    scaler = scaled["HorizontalPodAutoscaler", "chattts-server"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 4)
    assert scaler["metrics"][0]["pods"]["target"] == {"type": "AverageValue", "averageValue": "16"}


def test_gateways_are_as_they_are_said_or_none(changed: dict[str, str]) -> None:
    found = objects(changed["gateway"])
    assert found["Deployment", "chattts-gateway"]["spec"]["replicas"] == 5
    pod = pod_of("chattts-gateway", changed["gateway"])
    assert {"name": "keys", "secret": {"secretName": "mine"}} in pod["volumes"]
    assert pod["containers"][0]["args"][-3:] == ["--drain-timeout", "0", "--strict"]
    assert watermark_key(pod) == {"name": "mine", "key": "watermark", "optional": True}
    assert not [name for _, name in objects(changed["no gateway"]) if "gateway" in name]


def test_balancer_and_gateway_stand_before_servers_of_kserve(changed: dict[str, str]) -> None:
    found = objects(changed["no server"])
    assert {name for kind, name in found if kind == "Deployment"} == {"chattts-balancer", "chattts-gateway"}
    taken = {name for kind, name in found if kind == "Service"}
    (servers,) = [one["metadata"]["name"] for one in manifests() if one["kind"] == "Service"]
    (container,) = pod_of("chattts-balancer", changed["no server"])["containers"]
    assert {one["name"]: one.get("value", "") for one in container["env"]}["CHATTTS_SERVERS"].startswith(f"{servers}.")
    assert servers not in taken
    assert not {one["metadata"]["name"] for one in manifests()} & taken


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_is_not_allowed_is_refused_by_name(name: str) -> None:
    with pytest.raises(HelmError, match=name):
        template(REFUSED[name])


def test_balancers_are_replaced_when_their_configuration_changes(tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    before = template({}, chart)
    assert before == template({})  # a copy has the files that a link leads to
    with (chart / "haproxy" / "servers.cfg").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    after = template({}, chart)
    names = [
        one["configMap"]["name"] for text in (before, after) for one in pod_of("chattts-balancer", text)["volumes"]
    ]
    assert names[0] != names[1]


def test_the_chart_has_the_projects_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    (version,) = re.findall(r'^version = "(.*?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert (chart["version"], chart["appVersion"]) == (version, version)

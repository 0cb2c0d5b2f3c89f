"""docker/sbom.sh on the file system of a small image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_manifests import DOCKER, ROOT

STATUS = """Package: {name}
Status: install ok installed
Architecture: amd64
Maintainer: Somebody <somebody@example.org>
Version: {version}
Description: a package

"""
SYSTEM = {"libsomething": "1.2-3+deb12u1", "python3": "3.11.2-1+b1"}
PYTHON = {"numpy": "1.26.4", "of-a-base": "2"}


def write_metadata(folder: Path, name: str, version: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: Apache-2.0\n"
    (folder / ("PKG-INFO" if folder.suffix == ".egg-info" else "METADATA")).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its Python is of another version than this one and does not run."""
    root = tmp_path_factory.mktemp("一个 image")
    packages = root / "opt" / "chattts" / ".venv" / "lib" / "python3.99" / "site-packages"
    for name, version in PYTHON.items():
        write_metadata(packages / f"{name.replace('-', '_')}-{version}.dist-info", name, version)
    write_metadata(root / "opt" / "chattts" / "chattts_triton.egg-info", "chattts-triton", "0.1.0")
    write_metadata(root / "opt" / "chattts" / "client" / "chattts_client-0.1.0.dist-info", "chattts-client", "0.1.0")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, root / "opt" / "chattts")
    (root / "etc").mkdir()
    (root / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\nNAME="Debian GNU/Linux"\n', encoding="utf-8")
    dpkg = root / "var" / "lib" / "dpkg"
    dpkg.mkdir(parents=True)
    entries = [STATUS.format(name=name, version=version) for name, version in SYSTEM.items()]
    (dpkg / "status").write_text("".join(entries), encoding="utf-8")
    (dpkg / "arch-native").write_text("amd64\n", encoding="utf-8")
    return root


def test_an_inventory_names_every_package_of_the_image_and_none_of_this_machine(image: Path, tmp_path: Path) -> None:
    command = ["sh", DOCKER / "sbom.sh", image, tmp_path / "sbom"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    python, system = (json.loads((tmp_path / "sbom" / f"{name}.cdx.json").read_text()) for name in ("python", "system"))
    assert {one["bomFormat"] for one in (python, system)} == {"CycloneDX"}
    assert {one["name"]: one["version"] for one in python["components"]} == PYTHON | {"chattts-client": "0.1.0"}
    assert {one["purl"] for one in python["components"]} >= {"pkg:pypi/numpy@1.26.4"}
    assert python["metadata"]["component"]["name"] == "chattts-triton"
    found = {one["name"]: one["version"] for one in system["components"] if "arch=source" not in one["purl"]}
    assert found == SYSTEM
    assert any(one["purl"].startswith("pkg:deb/debian/python3@3.11.2-1") for one in system["components"])
    assert (system["metadata"]["component"]["name"], system["metadata"]["component"]["version"]) == (
        "Debian GNU/Linux",
        "12",
    )

"""Pages and docstrings name files that are there."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.conftest import ROOT

FOLDERS = (
    "backends|bench|chattts_serving|client|docker|docs|export|gateway|kubernetes|model_repository|tests|training|voices"
)
NAMED = re.compile(rf"(?<![\w/.$-])(?:{FOLDERS})/[\w./-]*\w\.(?:py|md|json|toml|yaml|yml|pbtxt|png|cfg|sh|[ch])\b")
EXAMPLES = {"bench/results/A.json", "bench/results/B.json"}


def test_every_file_that_a_page_or_a_module_names_exists() -> None:
    command = ["git", "ls-files", "*.md", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    if not listed:
        pytest.skip("no git checkout")
    missing = [
        f"{page}: {name}"
        for page in listed
        for name in set(NAMED.findall((ROOT / page).read_text(encoding="utf-8"))) - EXAMPLES
        if not any((folder / name).exists() for folder in (ROOT, (ROOT / page).parent))
    ]
    assert not missing

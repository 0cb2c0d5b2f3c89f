"""`make images-check` on a machine that cannot do it; where it can, CI runs it beside the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).with_name("images_check.sh")
USED = ("bash", "dirname", "head", "od", "tr", "id")


def test_a_machine_that_cannot_build_images_is_told_what_it_lacks(tmp_path: Path) -> None:
    for program in USED:
        (tmp_path / program).symlink_to(shutil.which(program) or "/none")
    result = subprocess.run(["bash", SCRIPT], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    lacks = "it wants root" if os.geteuid() else "buildah is not installed (apt-get install"
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"images-check skipped: {lacks}")

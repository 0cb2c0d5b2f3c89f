"""The commands that an installation brings, as a shell finds them."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "chattts": "chattts-client",
    "chattts-server": "chattts-triton",
    "chattts-gateway": "chattts-triton",
    "chattts-export": "chattts-triton",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_tells_its_version(command):
    result = subprocess.run(
        [Path(sys.executable).with_name(command), "--version"], capture_output=True, text=True, check=True
    )
    name, number = result.stdout.split()
    assert name == COMMANDS[command]
    assert number[0].isdecimal()

"""Helm's own engine as the package helm-python-sdk has it, in a process of its own: it brings Go's threads along.

`python -m tests.deploy.helm CHART RELEASE` reads a JSON list of values and writes a list of what came of each: the
manifests, or {"error": what Helm says}.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "kubernetes" / "chart"
RELEASE = "chattts"

Values = Mapping[str, Any]


class HelmError(Exception):
    """What Helm says of values that it does not take."""


def templates(values: Sequence[Values], chart: Path = CHART, release: str = RELEASE) -> list[str | HelmError]:
    """`helm template` for each of `values`."""
    command = [sys.executable, "-m", "tests.deploy.helm", chart, release]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(values), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [HelmError(one["error"]) if isinstance(one, dict) else one for one in json.loads(done.stdout)]


def template(values: Values, chart: Path = CHART, release: str = RELEASE) -> str:
    """The manifests.

    Raises:
        HelmError: the values are refused.
    """
    (found,) = templates([values], chart, release)
    if isinstance(found, HelmError):
        raise found
    return found


def main() -> None:
    """See above."""
    import helm_python  # noqa: PLC0415 - only here

    def rendered(values: Values) -> str | dict[str, str]:
        try:
            chart.validate_schema(values)
            return "\n---\n".join(filter(str.strip, chart.render(values, name=sys.argv[2]).values()))
        except helm_python.HelmError as error:
            return {"error": str(error)}

    findings = helm_python.lint(sys.argv[1], strict=True)
    assert not findings["errors"], findings
    with helm_python.Chart.load(sys.argv[1]) as chart:
        print(json.dumps([rendered(values) for values in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()

"""The part of KServe's schemas that kubernetes/kserve uses: `python -m tests.deploy.kserve FOLDER` cuts it.

FOLDER is config/crd/full of a checkout of KServe, whose schemas are two megabytes. What is written refuses each field
that was not used then, so whoever uses one more cuts anew, and has it checked on the way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "kubernetes" / "kserve"
SCHEMAS = Path(__file__).with_name("kserve.schema.json")
CRDS = {"InferenceService": "inferenceservices", "ServingRuntime": "servingruntimes"}
KEPT = ("enum", "format", "maximum", "minimum", "minLength", "pattern", "required")
COMMENT = "Cut by tests/deploy/kserve.py from the CRDs of KServe 0.20.0 (Apache-2.0, the KServe authors)"

Schema = dict[str, Any]


def manifests() -> Iterator[dict[str, Any]]:
    """Each object of kubernetes/kserve."""
    for path in sorted(MANIFESTS.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def cut(schema: Schema, value: Any) -> Schema:
    """Of a CRD's `schema` what `value` uses; unknown fields are refused, which Kubernetes drops without a word."""
    found = {key: schema[key] for key in KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found["type"] = schema["type"]
    if isinstance(value, dict) and "properties" in schema:
        found["properties"] = {name: cut(schema["properties"][name], one) for name, one in value.items()}
        found["additionalProperties"] = False
    elif isinstance(value, dict):
        found["additionalProperties"] = cut(schema["additionalProperties"], next(iter(value.values()), None))
    elif isinstance(value, list):
        found["items"] = joined([cut(schema["items"], one) for one in value])
    return found


def joined(schemas: list[Schema]) -> Schema:
    """One for all items of a list."""
    found: Schema = {}
    for one in schemas:
        for key, value in one.items():
            is_nested = key in ("properties", "items") or (key in found and isinstance(value, dict))
            found[key] = joined([found[key], value]) if is_nested and key in found else value
    return found


def main() -> None:
    """See above."""
    folder = Path(sys.argv[1])
    schemas: Schema = {"$comment": COMMENT}
    for one in manifests():
        if one["kind"] in CRDS:
            path = folder / f"serving.kserve.io_{CRDS[one['kind']]}.yaml"
            (version,) = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]["versions"]
            assert one["apiVersion"] == f"serving.kserve.io/{version['name']}"
            schema = cut(version["schema"]["openAPIV3Schema"]["properties"]["spec"], one["spec"])
            Draft7Validator(schema).validate(one["spec"])
            schemas[one["kind"]] = schema
    SCHEMAS.write_text(json.dumps(schemas, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

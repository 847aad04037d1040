"""JSON schemas for kubeconform, made from what an API server says about itself, so that they need no network.

Source: its /openapi/v2, which also holds the CRDs. Fields that a type does not have are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOCATION = "{{ .ResourceKind }}-{{ .Group }}-{{ .ResourceAPIVersion }}.json"
"""kubeconform's pattern for the file of a kind; it takes `v1` for the group of core kinds."""


def write_schemas(openapi: dict[str, Any], folder: Path) -> str:
    """One file per kind into `folder`; returns what to give to kubeconform's -schema-location."""
    folder.mkdir(parents=True, exist_ok=True)
    definitions = {name: close(definition) for name, definition in openapi["definitions"].items()}
    (folder / "_definitions.json").write_text(json.dumps({"definitions": definitions}))
    for name, definition in openapi["definitions"].items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            group = kind["group"] or kind["version"]
            file = folder / f"{kind['kind'].lower()}-{group}-{kind['version']}.json"
            file.write_text(json.dumps({"$ref": f"_definitions.json#/definitions/{name}"}))
    return f"{folder}/{LOCATION}"


def close(schema: Any) -> Any:
    """A schema that refuses unknown fields; int-or-string, which OpenAPI 2 cannot say, takes both."""
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "int-or-string":
        return {"type": ["string", "integer"]}
    closed = {
        key: {name: close(item) for name, item in value.items()} if key == "properties" else close(value)
        for key, value in schema.items()
        if not key.startswith("x-") and key != "format"
    }
    if isinstance(closed.get("$ref"), str):
        closed["$ref"] = closed["$ref"].replace("#/definitions/", "_definitions.json#/definitions/")
    kept = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in closed and "additionalProperties" not in closed and not kept:
        closed["additionalProperties"] = False
    return closed

"""What a rendered job is held against: the CRD with unknown fields refused, and the pod security level `restricted`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

CRD = Path(__file__).parents[1] / "golden" / "crds" / "kubeflow.org_pytorchjobs.json"
RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"),
}
"""https://kubernetes.io/docs/concepts/security/pod-security-standards/"""


def as_json_schema(node: Any) -> Any:
    """An openAPIV3Schema as JSON schema: unknown fields refused, `int-or-string` and `nullable` in its words."""
    if isinstance(node, list):
        return [as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {
        key: {name: as_json_schema(item) for name, item in value.items()}
        if key == "properties"
        else as_json_schema(value)
        for key, value in node.items()
        if key not in ("description", "default", "format")
    }
    if made.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if made.get("type") == "object" and "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.pop("nullable", False) and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


@cache
def validator() -> Draft7Validator:
    """The PyTorchJob CRD's own schema."""
    version = json.loads(CRD.read_text())["spec"]["versions"][0]
    schema = as_json_schema(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft7Validator(schema)


def schema_faults(job: Mapping[str, Any]) -> list[str]:
    """What the CRD refuses about a job, field by field."""
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator().iter_errors(job)]


def restricted_faults(pod: Mapping[str, Any]) -> Iterator[str]:
    """What `pod-security.kubernetes.io/enforce: restricted` refuses about a pod's spec."""
    own = pod.get("securityContext", {})
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"{key} is set"
    for volume in pod.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if not kinds <= RESTRICTED_VOLUMES:
            yield f"volume {volume['name']} is a {kinds}"
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        name, context = container["name"], container.get("securityContext", {})
        if context.get("privileged"):
            yield f"{name}: privileged"
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation is not false"
        capabilities = context.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", ()):
            yield f"{name}: does not drop ALL capabilities"
        if not set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"}:
            yield f"{name}: adds capabilities"
        if context.get("runAsNonRoot", own.get("runAsNonRoot")) is not True:
            yield f"{name}: runAsNonRoot is not true"
        if context.get("runAsUser", own.get("runAsUser")) == 0:
            yield f"{name}: runs as root"
        profile = context.get("seccompProfile", own.get("seccompProfile", {}))
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: no seccomp profile"
        if any(port.get("hostPort") for port in container.get("ports", ())):
            yield f"{name}: hostPort"

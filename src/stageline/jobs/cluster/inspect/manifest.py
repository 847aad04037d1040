"""A rendered job for people: as YAML, and field by field against the one that runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from stageline.config import ClusterConfig
from stageline.errors import ConfigError
from stageline.jobs.cluster.render.network_policy import render_objects
from stageline.jobs.environment import CONFIG_VARIABLE, DEADLINE_VARIABLE
from stageline.jobs.job import Job
from stageline.printing import escaped

SUBMISSION_ONLY = (
    *("ownerReferences", "resourceVersion", "uid", "generation", "creationTimestamp", "managedFields", "selfLink"),
)
"""Fields of `metadata` that no rendering has."""
_KEYED = ("name", "mountPath", "containerPort", "key", "topologyKey")
"""What tells the entries of a list of objects apart."""

_OPTIONAL = (
    *("nodeSelector", "affinity", "priorityClassName", "runtimeClassName", "schedulerName", "imagePullSecrets"),
    *("topologySpreadConstraints", "ttlSecondsAfterFinished", "requests", "limits"),
)
"""Fields that only some renderings have, and no server adds."""
_FREE = (".nodeSelector", ".requests", ".limits")
"""Mappings whose keys are all ours."""


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, equal lists written out."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if escaped(text) != text else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def manifest_yaml(manifest: Mapping[str, Any]) -> str:
    """A manifest as YAML that `kubectl apply -f -` takes; what may not be shown as it is stands escaped in quotes."""
    return escaped(yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000))


def objects_yaml(job: Job, cluster: ClusterConfig) -> str:
    """What `kubectl apply` makes a job of: its NetworkPolicy, if any, and the PyTorchJob, as YAML documents."""
    return "---\n".join(manifest_yaml(manifest) for manifest in render_objects(job, cluster))


def manifest_difference(live: Mapping[str, Any], rendered: Mapping[str, Any]) -> list[str]:
    """The fields in which a job that runs differs from the one that would be submitted, `field: runs -> submitted`.

    What the server defaulted, what the launcher stamped, and status are no difference; neither is the order in which
    environment variables, mounts and volumes stand.
    """
    return [_readable(line) for line in _differences(_comparable(live), _comparable(rendered), "")]


def _readable(line: str) -> str:
    """Without the long way to the pod's spec, which all jobs of ours share."""
    short = line.replace("spec.pytorchReplicaSpecs.Worker.template.spec.", "pod.", 1)
    short = short.replace("spec.pytorchReplicaSpecs.Worker.", "workers.", 1).replace("containers[pytorch].", "", 1)
    return short.replace("].value: ", "]: ", 1)


def _comparable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in manifest.items() if key != "status"}
    metadata = {key: value for key, value in plain.get("metadata", {}).items() if key not in SUBMISSION_ONLY}
    return {**plain, "metadata": metadata}


def _differences(live: Any, rendered: Any, path: str) -> Iterator[str]:
    """Only what the rendering states is compared, and what it once stated: entries of ours that it no longer has."""
    if isinstance(rendered, Mapping) and isinstance(live, Mapping):
        for key, value in rendered.items():
            here = f"{path}.{key}" if path else str(key)
            if key in live:
                yield from _differences(live[key], value, here)
            elif value not in ({}, [], ""):
                yield f"{here}: absent -> {_short(value)}"
        for key in live:
            if key not in rendered and (key in _OPTIONAL or path.endswith(_FREE)):
                yield f"{path}.{key}: {_short(live[key])} -> absent"
    elif isinstance(rendered, Sequence) and not isinstance(rendered, str) and isinstance(live, Sequence):
        yield from _list_differences(list(live), list(rendered), path)
    elif _plain(live) != _plain(rendered):
        yield from _text_differences(live, rendered, path)


def _list_differences(live: list[Any], rendered: list[Any], path: str) -> Iterator[str]:
    key = next((k for k in _KEYED if all(isinstance(e, Mapping) and k in e for e in (*live, *rendered))), None)
    if key is None:
        if live != rendered:
            yield f"{path}: {_short(live)} -> {_short(rendered)}"
        return
    before = {str(entry[key]): entry for entry in live}
    after = {str(entry[key]): entry for entry in rendered}
    for name, entry in after.items():
        if name in before:
            yield from _differences(before[name], entry, f"{path}[{name}]")
        else:
            yield f"{path}[{name}]: absent -> {_short(_value(entry))}"
    for name, entry in before.items():
        if name not in after and name != DEADLINE_VARIABLE:
            yield f"{path}[{name}]: {_short(_value(entry))} -> absent"


def _text_differences(live: Any, rendered: Any, path: str) -> Iterator[str]:
    """A config in a variable is compared key by key, everything else as one value."""
    if f"[{CONFIG_VARIABLE}]" in path and isinstance(live, str) and isinstance(rendered, str):
        from stageline.config import flatten, parse_yaml

        try:
            before, after = (parse_yaml(text, path) for text in (live, rendered))
        except ConfigError:  # what runs there was not written by us: then the two texts are compared
            before = after = None
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            old, new = flatten(before), flatten(after)
            for key in sorted({*old, *new}):
                if old.get(key, "absent") != new.get(key, "absent"):
                    yield f"config {key}: {_short(old.get(key, 'absent'))} -> {_short(new.get(key, 'absent'))}"
            return
    yield f"{path}: {_short(live)} -> {_short(rendered)}"


def _plain(value: Any) -> Any:
    """Quantities may come back as the server writes them: numbers and texts of the same number are one."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _value(entry: Any) -> Any:
    return entry.get("value", entry) if isinstance(entry, Mapping) else entry


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."

"""Writes what follows from the chart: manifests/, the README's table of values, the schema of the value `cluster`.

`make render` calls it; `--check` writes nothing and ends with 1 where a file differs. The chart's templates and
values.yaml are the source; the section `cluster` of a config (stageline.config.cluster) is the source of that schema.
"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from stageline.config import json_schema
from stageline.config.cluster import ClusterConfig
from stageline.config.fields import Settings
from stageline.config.syntax import Amounts, Annotations, Bytes, Label, Labels, Name, Names, NodeLabels

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from clients import find  # noqa: E402

CHART = ROOT / "helm/stageline"
HEADER = "# Rendered from helm/stageline by `make render`: change the chart, not this file.\n"
NAMESPACE = """---
# Pod security as strict as it gets: everything that stageline runs passes it.
apiVersion: v1
kind: Namespace
metadata:
  name: stageline
  labels:
    pod-security.kubernetes.io/enforce: restricted
    pod-security.kubernetes.io/warn: restricted
"""
OPTIONAL = {
    "kfp-role": ("", ("kfp.enabled=true",)),
    "pod-monitor": ("monitoring.coreos.com/v1/PodMonitor", ("podMonitor.enabled=true",)),
    "local-queue": (
        "kueue.x-k8s.io/v1beta1/LocalQueue",
        ("localQueue.create=true", "localQueue.name=stageline", "localQueue.clusterQueue=cluster-queue"),
    ),
}
"""Template -> the API of others that it needs, if any, and the values that ask for it."""


def template(*arguments: str) -> dict[str, str]:
    """The chart rendered for namespace stageline, without hooks: template's name -> its documents."""
    command = [find() / "helm", "template", "stageline", CHART, "--namespace", "stageline", "--no-hooks", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"error: {result.stderr.strip()}")
    found: dict[str, str] = {}
    for document in re.split(r"(?m)^---\n", result.stdout):
        source = re.match(r"# Source: stageline/templates/(\S+)\.yaml\n", document)
        if source:
            found[source[1]] = found.get(source[1], "") + "---\n" + document[source.end() :]
    return found


def manifests() -> dict[Path, str]:
    """Every file of manifests/ that comes from the chart. The namespace sorts first: kubectl applies in that order."""
    folder = ROOT / "manifests"
    files = {folder / "00-namespace.yaml": NAMESPACE}
    files |= {folder / f"{name}.yaml": text for name, text in template().items()}
    for name, (api, values) in OPTIONAL.items():
        sets = [part for value in values for part in ("--set", value)]
        text = template(*(("--api-versions", api) if api else ()), "--show-only", f"templates/{name}.yaml", *sets)[name]
        files[folder / f"optional/{name}.yaml"] = text
    return {path: HEADER + text for path, text in files.items()}


def schema() -> str:
    """values.schema.json with the section `cluster` as stageline's own settings define it."""
    text = json.loads((CHART / "values.schema.json").read_text())
    section = json_schema(ClusterConfig)
    definitions = {**section.pop("$defs", {}), "ClusterConfig": section}
    text["definitions"] = json.loads(json.dumps(bare(definitions)).replace("#/$defs/", "#/definitions/"))
    for settings in sections(ClusterConfig):
        for field, hint in get_type_hints(settings, include_extras=True).items():
            name = JUDGED.get(f"{settings.__name__}.{field}") or judge(hint)
            if name:
                properties = text["definitions"][settings.__name__]["properties"]
                about = {key: properties[field][key] for key in KEPT if key in properties[field]}
                properties[field] = {**about, "allOf": [{"$ref": f"#/$defs/{name}"}]}
    return indent(text) + "\n"


KEPT = ("description", "minLength", "maxLength")
"""What pydantic's schema says of a field besides its type."""
TYPES = (
    *((Name, "NameOrNone"), (Names, "Names"), (Label, "Namespace"), (Amounts, "Amounts"), (Bytes, "Amount")),
    *((NodeLabels, "NodeLabels"), (Labels, "NodeLabels"), (Annotations, "Keys")),
)
"""Types of the settings that pydantic's schema knows as any text or mapping -> what the chart's schema says of them."""
JUDGED = {
    "ClusterConfig.image": "Image",
    "ClusterConfig.affinity": "Affinity",
    "ClusterConfig.tolerations": "Tolerations",
    "NetworkConfig.metrics_from": "Peers",
    "NetworkConfig.egress": "EgressRules",
}
"""The same for what validators of a setting judge, and for objects of Kubernetes, which are taken verbatim."""


def judge(hint: Any) -> str:
    """Name of what the chart's schema says of a type; "" for one that says enough itself."""
    whole = [name for kind, name in TYPES if hint == kind]
    inner = [name for kind, name in TYPES[:1] if set(kind.__metadata__) & set(getattr(hint, "__metadata__", ()))]
    return next(iter([*whole, *inner]), "")


def sections(settings: type[Settings]) -> Iterator[type[Settings]]:
    """The settings and those they hold, at any depth."""
    yield settings
    for hint in get_type_hints(settings).values():
        for inner in [hint, *get_args(hint)]:
            if isinstance(inner, type) and issubclass(inner, Settings):
                yield from sections(inner)


def bare(value: Any) -> Any:
    """A JSON schema without what only repeats the settings: titles and defaults."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in ("$schema", "default") and item != ""}
        return {key: bare(item) for key, item in kept.items() if key != "title" or not isinstance(item, str)}
    return [bare(item) for item in value] if isinstance(value, list) else value


def indent(value: Any, depth: int = 0) -> str:
    """JSON with everything on one line that fits into one."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + depth <= 118 or not isinstance(value, (dict, list)):
        return line
    pad = " " * (depth + 2)
    if isinstance(value, dict):
        body = [f"{pad}{json.dumps(key)}: {indent(item, depth + 2)}" for key, item in value.items()]
    else:
        body = [pad + indent(item, depth + 2) for item in value]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return start + "\n" + ",\n".join(body) + "\n" + " " * depth + end


def rows(values: dict[str, Any], properties: dict[str, Any], prefix: str = "") -> list[str]:
    """One line of the table per value; a mapping that is empty by default is one value."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value and "properties" in properties[key]:
            lines += rows(value, properties[key]["properties"], f"{prefix}{key}.")
        else:
            shown = json.dumps(value) if value != "" else '""'
            lines.append(f"| `{prefix}{key}` | `{shown}` | {properties[key]['description']} |")
    return lines


def readme() -> str:
    """The README with its table of values."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    table = rows(values, json.loads((CHART / "values.schema.json").read_text())["properties"])
    text = "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *table])
    before, _, rest = (CHART / "README.md").read_text().partition("<!-- values -->\n")
    _, _, after = rest.partition("<!-- end of values -->")
    return f"{before}<!-- values -->\n{text}\n<!-- end of values -->{after}"


def main(check: bool) -> int:
    """Write every file, or show how it differs from what would be written."""
    if not check:  # helm reads it, so it comes first
        (CHART / "values.schema.json").write_text(schema())
    files = {CHART / "values.schema.json": schema(), CHART / "README.md": readme(), **manifests()}
    found = [*(ROOT / "manifests").glob("*.yaml"), *(ROOT / "manifests/optional").glob("*.yaml")]
    different = 0
    for path in sorted({*files, *found}):
        old = path.read_text() if path.exists() else ""
        new = files.get(path, "")
        if old == new:
            continue
        different += 1
        if not check and new:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(new)
        elif not check:
            path.unlink()
        else:
            name = str(path.relative_to(ROOT))
            lines = difflib.unified_diff(old.splitlines(), new.splitlines(), name, f"{name}, rendered", lineterm="")
            print(*lines, sep="\n")
    if check and different:
        print("\nrun `make render`", file=sys.stderr)
    return int(check and different > 0)


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))

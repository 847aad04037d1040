"""What the chart takes, Kubernetes and stageline take too: names, keys, amounts, rules, addresses are judged first."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stageline.config import validate
from stageline.config.cluster import ClusterConfig
from stageline.config.syntax import DNS_SUBDOMAIN, quantity_value
from stageline.errors import ConfigError
from stageline.jobs.defaults import parse_defaults

from .conftest import StrictLoader
from .test_objects import CHART, SERVED, Render, defaults, pick, unknown_fields
from .test_values import SCHEMA, VALUES, Helm

Merge = Callable[[str], dict[str, Any]]
NAMES = (
    "a",
    "a.b",
    "0",
    "1e3",
    "yes",
    "x" * 64,
    "x" * 253,
    "x" * 254,
    "a..b",
    "a-.b",
    "a.-b",
    "A",
    "-a",
    "a-",
    "ü",
    "a/b",
)
KEYS = ("a", "A_b.c", "yes", "a.b/c", "x" * 63, "x" * 64, "a..b/c", "A.b/c", "/c", "a/", "a/b/c", "-a", "ü", "a b", "")
AMOUNTS = (
    "1",
    "0",
    "0.5Gi",
    "1e3",
    "1E3",
    ".5",
    "5.",
    "500m",
    "3Ei",
    "1e-3",
    "1_000",
    "0x10",
    "-1",
    "1 Gi",
    "Gi",
    "",
    "ü",
)


def definition(name: str) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator({**SCHEMA["$defs"][name], "$defs": SCHEMA["$defs"]})


def is_quantity(text: str) -> bool:
    try:
        return quantity_value(text) >= 0
    except ValueError:
        return False


def test_the_schema_and_the_config_agree_about_names_and_amounts() -> None:
    for name in NAMES:
        legal = len(name) <= 253 and DNS_SUBDOMAIN.fullmatch(name) is not None
        assert definition("Name").is_valid(name) is legal, name
        assert definition("NameOrNone").is_valid(name) is legal, name
    assert definition("NameOrNone").is_valid("")
    for text in AMOUNTS:
        assert definition("Amounts").is_valid({"cpu": text}) is is_quantity(text), text
    assert definition("Amounts").is_valid({"cpu": 0.5, "pods": 1_000_000})
    assert not definition("Amounts").is_valid({"cpu": -1})
    assert not definition("Amounts").is_valid({"cpu": True})


@pytest.mark.parametrize("kind", ["Labels", "Annotations", "NodeLabels", "Amounts"])
def test_the_schema_and_the_config_agree_about_keys(kind: str) -> None:
    for key in KEYS:
        value = "1" if kind == "Amounts" else "a"
        try:
            validate({"node_selector": {key: "a"}}, ClusterConfig, "keys")
            legal = True
        except Exception:  # noqa: BLE001  # whatever refuses it
            legal = False
        assert definition(kind).is_valid({key: value}) is legal, key


FREE = {
    *("storage.s3.region", "storage.s3.noProxy"),
    *(f"storage.s3.credentials.{key}" for key in ("accessKeyId", "secretAccessKey", "sessionToken")),
}
"""Texts that may be any: they end in quotes."""


def test_no_other_text_of_the_schema_goes_unjudged() -> None:
    def texts(schema: dict[str, Any], where: str) -> Iterator[str]:
        for key, item in schema.get("properties", {}).items():
            if item.get("type") == "string" and not {"pattern", "enum", "const"} & set(item):
                yield f"{where}{key}"
            yield from texts(item, f"{where}{key}.")

    assert set(texts(SCHEMA, "")) == FREE
    for name in re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(SCHEMA)):
        assert name in SCHEMA["$defs"]


REFUSED: dict[str, tuple[str, Any]] = {
    "two dots": ("/kfp/artifactSecret", {"kfp": {"artifactSecret": "a..b"}}),
    "too long": ("/launcher/serviceAccount/name", {"launcher": {"serviceAccount": {"name": "x" * 254}}}),
    "a label's length": ("/localQueue/name", {"localQueue": {"name": "x" * 64}}),
    "a tag": ("/images/trainer/tag", {"images": {"trainer": {"tag": "-a"}}}),
    "a key": ("a..b/c", {"labels": {"a..b/c": "d"}}),
    "an amount": ("/resourceQuota/hard/pods", {"resourceQuota": {"hard": {"pods": "no"}}}),
    "no key": ("invalid propertyName ''", {"resourceQuota": {"hard": {"": "1"}}}),
    "negative": ("/resourceQuota/hard/pods", {"resourceQuota": {"hard": {"pods": -1}}}),
    "a limit": (
        "/limitRange/limits/0/default/cpu",
        {"limitRange": {"limits": [{"type": "Pod", "default": {"cpu": "x"}}]}},
    ),
    "a limit's field": ("/limitRange/limits/0", {"limitRange": {"limits": [{"type": "Pod", "defaults": {}}]}}),
    "a size": ("/storage/claim/size", {"storage": {"claim": {"size": "0Gi"}}}),
    "thousandths": ("/storage/claim/size", {"storage": {"claim": {"size": "500m"}}}),
    "modes": (
        "/storage/claim/accessModes",
        {"storage": {"claim": {"accessModes": ["ReadWriteOncePod", "ReadWriteMany"]}}},
    ),
    "a port": ("/storage/s3/endpoint", {"storage": {"s3": {"endpoint": "https://h:65536"}}}),
    "no port": ("/storage/s3/proxy", {"storage": {"s3": {"proxy": "http://h:x"}}}),
    "a subject": ("/rbac/subjects/0/name", {"rbac": {"subjects": [{"kind": "ServiceAccount", "name": "A"}]}}),
    "its group": (
        "/rbac/subjects/0/apiGroup",
        {"rbac": {"subjects": [{"kind": "ServiceAccount", "name": "a", "apiGroup": "rbac.authorization.k8s.io"}]}},
    ),
    "a rule for all": ("/networkPolicy/egress/0", {"networkPolicy": {"egress": [{"to": []}]}}),
    "a rule's peer": (
        "/networkPolicy/egress/0/to/0",
        {"networkPolicy": {"egress": [{"to": [{"cidr": "10.0.0.0/8"}]}]}},
    ),
    "no network": (
        "/networkPolicy/metricsFrom/0/ipBlock/cidr",
        {"networkPolicy": {"metricsFrom": [{"ipBlock": {"cidr": "10.0.0.0"}}]}},
    ),
    "trial's amounts": ("/trial/resources/limits/memory", {"trial": {"resources": {"limits": {"memory": "much"}}}}),
    "trial's nodes": ("/trial/nodeSelector/pool", {"trial": {"nodeSelector": {"pool": "a b"}}}),
    "trial's tolerations": ("/trial/tolerations/0", {"trial": {"tolerations": [{"name": "a"}]}}),
    "trial's effect": ("/trial/tolerations/0/effect", {"trial": {"tolerations": [{"effect": "Never"}]}}),
    "trial's time": ("/trial/deadlineSeconds", {"trial": {"deadlineSeconds": 12345678901}}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_fail_later_is_refused_by_its_place(helm: Helm, tmp_path: Path, case: str) -> None:
    place, values = REFUSED[case]
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    said = helm("template", "stageline", "helm/stageline", "-f", tmp_path / "values.yaml").stderr
    assert "values don't meet the specifications" in said
    assert place in said


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("storage.s3.endpoint=https://user:hidden@store", "storage.s3.endpoint holds a user or password"),
        ("storage.s3.proxy=http://user:hidden@proxy:3128", "storage.s3.proxy holds a user or password"),
        ("storage.s3.endpoint=http://169.254.169.254", "storage.s3.endpoint is a link-local address"),
        ("storage.s3.proxy=http://[FE80::1]:3128", "storage.s3.proxy is a link-local address"),
        ("storage.mountPath=/tmp", "storage.mountPath /tmp is what pods have for other ends"),
        ("storage.mountPath=/dev/shm/a", "storage.mountPath /dev/shm/a is what pods have for other ends"),
    ],
)
def test_what_no_job_could_use_is_said_in_words_without_secrets(helm: Helm, setting: str, said: str) -> None:
    result = helm("template", "stageline", "helm/stageline", "--set", setting)
    assert result.returncode != 0
    assert said in result.stderr
    assert "hidden" not in result.stderr


SECTIONS: dict[str, dict[str, Any]] = {
    "an image": {"image": "https://registry.example.com/trainer"},
    "an affinity": {"affinity": {"nodeaffinity": {}}},
    "a size": {"shared_memory": "big"},
    "a name": {"service_account": "A"},
    "no name": {"defaults": ""},
    "a namespace": {"namespace": "a.b"},
    "names": {"pull_secrets": ["a", "B"]},
    "an amount": {"resources": {"limits": {"nvidia.com/gpu": "eight"}}},
    "an amount of a step": {"prepare_resources": {"requests": {"cpu": "x"}}},
    "a label of a node": {"node_selector": {"pool": "a b"}},
    "a label": {"labels": {"a..b/c": "d"}},
    "an annotation's key": {"annotations": {"a b": "d"}},
    "a claim": {"storage": {"claim": "a..b"}},
    "a Secret": {"storage": {"s3": {"secret": "a_b"}}},
    "a mount": {"mounts": [{"mount_path": "/a", "secret": "-a"}]},
    "a toleration": {"tolerations": [{"name": "a"}]},
    "a rule": {"network": {"egress": [{"to": []}]}},
    "a peer": {"network": {"metrics_from": [{"namespaces": "a"}]}},
}


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_the_chart_refuses_in_the_section_what_a_config_refuses(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        validate(section, ClusterConfig, "cluster")
    assert not jsonschema.Draft7Validator(SCHEMA).is_valid({**VALUES, "cluster": section})


def test_the_chart_takes_what_a_config_takes() -> None:
    section = {
        "shared_memory": 1_000_000_000,
        "scratch": "1e12",
        "queue": "",
        "resources": {"requests": {"cpu": 0.5}, "limits": {"nvidia.com/gpu": 8, "rdma/hca_a": "1"}},
        "image": "Registry.example.com:5000/a/b_c:1.0@sha256:" + "0" * 64,
        "affinity": {"nodeAffinity": {}},
        "tolerations": [{"operator": "Exists"}],
        "annotations": {"example.com/a": "b c"},
        "network": {"metrics_from": ["a", {"podSelector": {"matchLabels": {"a": "b"}}}]},
        "mounts": [{"mount_path": "/a", "claim": "b"}],
        "run_as_user": None,
        "prepare_resources": None,
    }
    validate(section, ClusterConfig, "cluster")
    jsonschema.Draft7Validator(SCHEMA).validate({**VALUES, "cluster": section})


ODD = {
    "resourceQuota": {"hard": {"yes": 1_000_000, "requests.cpu": 1.5, "pods": "1e3", "on": "0.5Gi"}},
    "limitRange": {"limits": [{"type": "Container", "default": {"cpu": "0.5"}, "maxLimitRequestRatio": {"cpu": "4"}}]},
    "storage": {
        "claim": {"create": True, "size": "1e12", "accessModes": ["ReadWriteOncePod"], "storageClassName": "a.b"},
        "s3": {"root": "s3://b", "endpoint": "http://[::1]:65535/", "proxy": "http://proxy:3128/a"},
        "mountPath": "/tmpfs",
    },
    "priorityClass": {"create": True, "name": "1e3", "value": -2147483648},
    "networkPolicy": {
        "limitEgress": True,
        "metricsFrom": ["123", {"podSelector": {}}, {"ipBlock": {"cidr": "fd00::/8", "except": ["fd00::/64"]}}],
        "egress": [
            {"ports": [{"port": "web"}, {"port": 1, "endPort": 9, "protocol": "SCTP"}]},
            {"to": [{"podSelector": {}}]},
        ],
    },
    "rbac": {"subjects": [{"kind": "ServiceAccount", "name": "a.b"}, {"kind": "User", "name": "Jane Ü: #1"}]},
    "trial": {
        "family": "on",
        "stage": "null",
        "tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 1}],
    },
}


def test_what_is_odd_and_legal_arrives_as_it_was_meant(render: Render, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(json.dumps(ODD))
    documents = render("", "-f", str(tmp_path / "values.yaml"), *SERVED)
    faults = []
    for d in documents:
        faults += list(unknown_fields(d, f"{d['apiVersion'].rpartition('/')[2].capitalize()}{d['kind']}", d["kind"]))
    assert faults == []
    hard = pick(documents, "ResourceQuota")["spec"]["hard"]
    assert {key: quantity_value(amount) for key, amount in hard.items()} == {
        "yes": 1_000_000,
        "requests.cpu": quantity_value("1.5"),
        "pods": 1000,
        "on": quantity_value("512Mi"),
    }
    assert pick(documents, "Pod")["spec"]["containers"][0]["command"][2:] == ["--family", "on", "--stage", "null"]
    for key in ("cluster.yaml", "trial.yaml"):
        section = parse_defaults(pick(documents, "ConfigMap")["data"][key], key)["cluster"]
        assert validate(section, ClusterConfig, key).storage.mount_path == "/tmpfs"


def test_the_pod_of_the_trial_goes_where_its_job_goes(render: Render) -> None:
    """Where every node is for something, or tainted, it would wait for ever otherwise."""
    wanted = "cluster.node_selector.pool=gpu,cluster.tolerations[0].key=gpu,cluster.tolerations[0].operator=Exists"
    for more, pool in (("", "gpu"), (",trial.nodeSelector.pool=cpu", "cpu")):
        documents = render("", "--set", wanted + more)
        pod, job = pick(documents, "Pod")["spec"], defaults(documents, key="trial.yaml")["cluster"]
        assert pod["nodeSelector"] == job["node_selector"] == {"pool": pool}
        assert pod["tolerations"] == job["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert not {"nodeSelector", "tolerations"} & set(pick(render(), "Pod")["spec"])


# A chart of charts ---------------------------------------------------------------------------------------------------


def test_a_chart_that_has_this_one_as_a_dependency_switches_it_on_and_off(helm: Helm, tmp_path: Path) -> None:
    """`condition: stageline.enabled` is how charts of charts do it; its value lies among the values of this one."""
    shutil.copytree(CHART, tmp_path / "charts/stageline")
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    needed = [{"name": "stageline", "version": version, "condition": "stageline.enabled"}]
    about = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": needed}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(about))
    values = {"global": {"imageRegistry": "mirror.example.com"}, "stageline": {"enabled": True}}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    on = helm("template", "all", tmp_path)
    assert on.returncode == 0, on.stderr
    documents = [d for d in yaml.load_all(on.stdout, StrictLoader) if d]
    assert "mirror.example.com/" in pick(documents, "Pod", "default")["spec"]["containers"][0]["image"]
    assert "kind:" not in helm("template", "all", tmp_path, "--set", "stageline.enabled=false").stdout
    alone = helm("template", "stageline", "helm/stageline", "--set", "enabled=false")
    assert "here nothing else can" in alone.stderr


def test_a_version_with_a_plus_is_a_label_and_a_tag(helm: Helm, tmp_path: Path) -> None:
    """`helm package --app-version 0.2.0+abc` may put one there; neither labels nor tags of images have it."""
    chart = tmp_path / "stageline"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**about, "version": "0.2.0+abc", "appVersion": "0.2.0+abc"}))
    made = helm("template", "stageline", chart).stdout
    for document in yaml.load_all(made, StrictLoader):
        assert "+" not in str(document["metadata"]["labels"])
    assert "stageline/trainer:0.2.0_abc" in made
    assert "stageline/launcher:0.2.0_abc" in made

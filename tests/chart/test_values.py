"""Values: bad ones are refused in words and all at once, every one is documented, what follows from them is fresh."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from .test_objects import SERVED, Render, unknown_fields

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/stageline"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
SETS = sorted((CHART / "ci").glob("*-values.yaml"))
Helm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("values", [None, *SETS], ids=lambda path: path.stem if path else "defaults")
def test_helm_lints_the_chart_strictly(helm: Helm, values: Path | None) -> None:
    result = helm("lint", "--strict", "helm/stageline", *(["-f", values] if values else []))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stdout


def test_an_older_kubernetes_is_refused(helm: Helm) -> None:
    result = helm("template", "stageline", "helm/stageline", "--kube-version", "1.28.9")
    assert result.returncode != 0
    assert ">=1.29.0-0" in result.stderr
    assert helm("template", "stageline", "helm/stageline", "--kube-version", "1.29.1-gke.100").returncode == 0


BAD = {
    "images.trainer.digest=abc": ("/images/trainer/digest", "abc"),
    "images.trainer.tag=latest": ("/images/trainer/tag",),
    "images.launcher.repository=Upper/case": ("/images/launcher/repository",),
    "images.trainer.repository=stageline/trainer:1.0": ("/images/trainer/repository", "stageline/trainer:1.0"),
    "images.launcher.pullPolicy=Sometimes": ("/images/launcher/pullPolicy", "IfNotPresent"),
    "jobNamespaces={team_a}": ("/jobNamespaces/0", "team_a"),
    "storage.claim.size=big": ("/storage/claim/size", "big"),
    "storage.claim.accessModes={ReadOnlyMany}": ("/storage/claim/accessModes/0", "ReadWriteMany"),
    "storage.mountPath=data": ("/storage/mountPath", "data"),
    "storage.subPath=../up": ("/storage/subPath", "../up"),
    "storage.s3.root=https://bucket": ("/storage/s3/root", "https://bucket"),
    "storage.s3.endpoint=minio:9000": ("/storage/s3/endpoint", "minio:9000"),
    "kfp.enabled=maybe": ("/kfp/enabled", "boolean"),
    "trainer.serviceAccount.annotation.a=b": ("/trainer/serviceAccount", "annotation"),
    "podMonitors.enabled=true": ("podMonitors",),
    "podMonitor.port=23456": ("/podMonitor/port",),
    "networkPolicy.metricsFrom={Monitoring!}": ("/networkPolicy/metricsFrom/0", "Monitoring!"),
    "networkPolicy.egress[0].from=all": ("/networkPolicy/egress/0", "from"),
    "cluster.restart_budget=often": ("/cluster/restart_budget", "integer"),
    "cluster.ressources.limits.cpu=1": ("/cluster", "ressources"),
}


@pytest.mark.parametrize("setting", BAD)
def test_a_bad_value_is_refused_by_its_name(helm: Helm, setting: str) -> None:
    result = helm("template", "stageline", "helm/stageline", "--set", setting)
    assert result.returncode != 0
    for word in BAD[setting]:
        assert word in result.stderr


def test_all_bad_values_are_told_at_once(helm: Helm) -> None:
    result = helm("template", "stageline", "helm/stageline", *(part for setting in BAD for part in ("--set", setting)))
    told = [words[0] for words in BAD.values() if words[0] not in result.stderr]
    assert told == []


CONTRADICTIONS = {
    "storage.existingClaim=a,storage.claim.create=true": "storage.existingClaim and storage.claim.create",
    "storage.s3.existingSecret=a,storage.s3.credentials.accessKeyId=b": "existingSecret and storage.s3.credentials",
    "storage.s3.credentials.accessKeyId=b": "needs accessKeyId and secretAccessKey together",
    "storage.s3.caSecret=a,storage.s3.caConfigMap=b": "storage.s3.caConfigMap and storage.s3.caSecret",
    "localQueue.create=true": "localQueue.create needs localQueue.name",
    "priorityClass.create=true": "priorityClass.create needs priorityClass.name",
    "trainer.serviceAccount.name=stageline-launcher": "share one service account",
    "namePolicy.enabled=true,cluster.name_prefix=own-": "namePolicy.enabled needs a cluster.name_prefix",
}


def test_contradictions_are_told_in_words_and_all_at_once(helm: Helm) -> None:
    for setting, sentence in CONTRADICTIONS.items():
        result = helm("template", "stageline", "helm/stageline", "--set", setting)
        assert result.returncode != 0
        assert sentence in result.stderr, setting
    result = helm("template", "stageline", "helm/stageline", *(p for s in CONTRADICTIONS for p in ("--set", s)))
    assert result.stderr.count("\n  - ") == len(CONTRADICTIONS)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("kfp.enabled=true,kfp.serviceAccount=stageline-trainer", "training pods share one service account"),
        ("kfp.enabled=true,kfp.serviceAccount=a,cluster.service_account=a", "training pods share one service account"),
        ("cluster.service_account=stageline-launcher", "launcher and trainer share one service account"),
    ],
)
def test_whoever_starts_jobs_and_training_pods_have_two_accounts(helm: Helm, setting: str, said: str) -> None:
    assert said in helm("template", "s", "helm/stageline", "--set", setting).stderr


def paths(values: dict[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key of values.yaml with its default, sections included; not what lies in `trial.resources.*`."""
    for key, item in values.items():
        yield (*where, key), item
        if isinstance(item, dict) and where != ("trial", "resources"):
            yield from paths(item, (*where, key))


def without(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """What helm makes of values in which a key is null."""
    rest = {key: item for key, item in values.items() if key != path[0]}
    return {**rest, path[0]: without(values[path[0]], path[1:])} if path[1:] else rest


def test_a_null_is_refused_where_something_stands_by_default_and_is_empty_elsewhere(
    helm: Helm, render: Render, tmp_path: Path
) -> None:
    """helm takes a default away that is null. Keys of now alone may lack, since an upgrade can reuse older values."""
    before = {path for path, _ in paths(yaml.safe_load((Path(__file__).parent / "previous-values.yaml").read_text()))}
    validator = jsonschema.Draft7Validator(SCHEMA)
    nulls: dict[str, Any] = {}
    for path, default in paths(VALUES):
        empty = default in ("", [], {}, False)
        assert validator.is_valid(without(VALUES, path)) is (empty or path not in before), path
        if empty:
            section = nulls
            for key in path[:-1]:
                section = section.setdefault(key, {})
            section[path[-1]] = None
    assert nulls["cluster"] is None
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(nulls))
    assert render("", "-f", str(tmp_path / "values.yaml")) == render()
    said = helm("template", "stageline", "helm/stageline", "--set", "storage=null,kfp.artifactSecret=null").stderr
    assert "missing property 'storage'" in said
    assert "at '/kfp': missing property 'artifactSecret'" in said


def test_names_that_yaml_reads_as_numbers_or_truths_stay_names(render: Render) -> None:
    names = {
        "nameOverride": "true",
        "launcher.serviceAccount.name": "0x1f",
        "trainer.serviceAccount.name": "null",
        "images.pullSecrets[0]": "1e3",
        "kfp.artifactSecret": "007",
        "storage.claim.name": "123",
        "storage.claim.volumeName": "off",
        "storage.claim.size": "5",
        "storage.mountPath": "/a #b",
        "localQueue.name": "12",
        "localQueue.clusterQueue": "13",
        "priorityClass.name": "14",
    }
    strings = ",".join(f"{key}={value}" for key, value in names.items())
    more = "kfp.enabled=true,storage.claim.create=true,localQueue.create=true,priorityClass.create=true"
    more += ",resourceQuota.hard.pods=1,podMonitor.enabled=true"
    documents = render("", "-n", "0123", "--set-string", strings, "--set", more, *SERVED)
    known = [d for d in documents if d["kind"] not in ("PodMonitor", "LocalQueue")]
    faults = []
    for d in known:
        faults += list(unknown_fields(d, f"{d['apiVersion'].rpartition('/')[2].capitalize()}{d['kind']}", d["kind"]))
    assert faults == []
    assert {d["metadata"].get("namespace", "0123") for d in documents} == {"0123"}
    (claim,) = [d for d in documents if d["kind"] == "PersistentVolumeClaim"]
    assert (claim["metadata"]["name"], claim["spec"]["volumeName"]) == ("123", "off")
    (queue,) = [d for d in documents if d["kind"] == "LocalQueue"]
    assert (queue["metadata"]["name"], queue["spec"]) == ("12", {"clusterQueue": "13"})
    (defaults,) = [d["data"]["cluster.yaml"] for d in documents if d["kind"] == "ConfigMap"]
    assert yaml.safe_load(defaults)["root"] == "/a #b"


def test_the_defaults_fit_the_schema_and_the_schema_knows_every_value() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)

    def walk(values: dict[str, Any], schema: dict[str, Any], where: str) -> None:
        if "properties" not in schema:
            return
        assert schema.get("additionalProperties", True) is (where == "values.global"), "others' globals are let pass"
        assert set(values) == set(schema["properties"]), where
        for key, item in values.items():
            assert schema["properties"][key]["description"], f"{where}.{key}"
            if isinstance(item, dict) and item:
                walk(item, schema["properties"][key], f"{where}.{key}")

    walk(VALUES, SCHEMA, "values")


def test_what_follows_from_the_chart_is_up_to_date(helm: Helm) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts/render_chart.py", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_readme_lists_every_value() -> None:
    listed = re.findall(r"(?m)^\| `([\w.]+)` \|", (CHART / "README.md").read_text())

    def leaves(values: dict[str, Any], prefix: str) -> list[str]:
        found = []
        for key, item in values.items():
            opened = (
                isinstance(item, dict)
                and item
                and prefix + key not in ("trial.resources.requests", "trial.resources.limits")
            )
            found += leaves(item, f"{prefix}{key}.") if opened else [prefix + key]
        return found

    assert [name for name in listed if name.partition(".")[0] in VALUES] == leaves(VALUES, "")


def test_the_notes_print_the_next_command(helm: Helm) -> None:
    def notes(*arguments: str) -> str:
        result = helm("install", "stageline", "helm/stageline", "-n", "imaging", "--dry-run=client", *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout.partition("NOTES:")[2]

    text = notes()
    assert "helm test stageline -n imaging --logs --timeout 17m\n" in text
    asked = re.search(r'semverCompare "(.*?)" .Capabilities.HelmVersion', (CHART / "templates/NOTES.txt").read_text())
    assert asked is not None, "with helm 3, --logs fails where the trial succeeded: the pod is gone"
    assert "--timeout 3m\n" in notes("--set", "trial.deadlineSeconds=60"), "the pod's own end, and some"
    assert "storage.claim.create=true" in text
    assert "stageline pipeline submit" in text
    assert "storage.claim.create" not in notes("--set", "storage.s3.root=s3://a/b")
    assert "No PodMonitor was made" in notes("--set", "podMonitor.enabled=true")
    elsewhere = notes("--set", "jobNamespaces={team-a,team-b}")
    assert "helm test stageline -n imaging --timeout 17m\n\n" in elsewhere
    assert "trial.enabled=true" in notes("--set", "trial.enabled=false")

"""One list of rights: what stageline asks for, what the manifests grant, and what a refusal says are the same rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from stageline.errors import ClusterError
from stageline.jobs.cluster.follow.permission import refuse_without_permission
from stageline.kube.client import Api
from stageline.kube.rights import (
    RULES,
    Rule,
    chart_command,
    grant_command,
    missing_rules,
    rules_of,
    rules_of_following,
)

from .serving import serving

ROOT = Path(__file__).parents[2]
Granted = set[tuple[str, str, str, str]]


def granted(file: str = "roles.yaml") -> Granted:
    """(group, resource, verb, name of the one object) that the only Role of a file of the manifests gives."""
    documents = yaml.safe_load_all((ROOT / "manifests" / file).read_text())
    (role,) = [d for d in documents if d and d["kind"] == "Role"]
    return {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


@contextmanager
def answering(role: Granted, folder: Path) -> Iterator[Api]:
    """A server that answers questions about permission as one with this Role would; anything else is refused."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = body["spec"]["resourceAttributes"]
            sub = asked["subresource"]
            resource = f"{asked['resource']}/{sub}" if sub else asked["resource"]
            key = (asked["group"], resource, asked["verb"], asked["name"])
            answer = json.dumps({**body, "status": {"allowed": key in role}}).encode()
            self.send_response(201)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Nothing to say."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler), folder) as kubeconfig:
        yield Api.connect("train", kubeconfig=str(kubeconfig))


def test_the_manifests_grant_exactly_what_the_list_names() -> None:
    """But for the Secret of KFP's artifact store, which is read under a name of the installation's."""
    launcher, steps = granted(), granted("optional/kfp-role.yaml")
    of_kfp = [rule for rule in RULES if rule.part == "kfp"]
    others = [rule for rule in RULES if rule.part != "kfp"]
    assert launcher == {(rule.group, rule.resource, verb, rule.name) for rule in others for verb in rule.verbs}
    given = {entry for entry in steps if entry[1] != "secrets"}
    assert given == {(rule.group, rule.resource, verb, rule.name) for rule in of_kfp for verb in rule.verbs}
    assert {entry[2:] for entry in steps - given} == {("get", "mlpipeline-minio-artifact")}


def test_what_is_asked_for_before_a_job_is_made_stands_in_the_list() -> None:
    asked = rules_of_following()
    assert asked
    for rule in asked:
        (whole,) = [r for r in rules_of("launch") if (r.what, r.name) == (rule.what, rule.name)]
        assert set(rule.verbs) <= set(whole.verbs)


def test_a_launcher_is_let_through_by_the_manifests_and_told_each_rule_that_lacks(tmp_path: Path) -> None:
    role = granted()
    lacking = {("kubeflow.org", "pytorchjobs", "patch", ""), ("", "pods/log", "get", "")}
    with answering(role, tmp_path) as api:
        refuse_without_permission(api)
        role -= lacking
        with pytest.raises(ClusterError, match="in namespace 'train'") as caught:
            refuse_without_permission(api)
    assert caught.value.code == "E_FORBIDDEN"
    assert caught.value.remedy.endswith(
        '{apiGroups: ["kubeflow.org"], resources: ["pytorchjobs"], verbs: ["patch"]}, '
        '{apiGroups: [""], resources: ["pods/log"], verbs: ["get"]}'
    )


def test_the_defaults_are_asked_for_under_the_name_that_they_have() -> None:
    names = {rule.name for rule in rules_of("launch", "imaging") if rule.resource == "configmaps"}
    assert names == {"imaging"}
    assert [r for r in rules_of("launch", "imaging") if not r.name] == [r for r in rules_of("launch") if not r.name]


def test_the_command_for_the_chart_follows_its_name_and_keeps_its_values() -> None:
    before = "helm upgrade --install"
    after = "helm/stageline -n train --reset-then-reuse-values"
    assert chart_command("train", "stageline") == f"{before} stageline {after}"
    assert chart_command("train", "imaging", "kfp.enabled=true") == (
        f"{before} imaging {after} --set nameOverride=imaging,kfp.enabled=true"
    )


def test_a_missing_right_comes_with_the_command_that_gives_it() -> None:
    missing = missing_rules(rules_of("launch"), lambda verb, rule: not (rule.resource == "pods/log" or verb == "patch"))
    assert missing == [
        Rule("launch", "kubeflow.org", "pytorchjobs", ("patch",)),
        Rule("launch", "", "pods/log", ("get",)),
    ]
    command = grant_command(missing[:1], "training", "system:serviceaccount:training:stageline-launcher")
    assert command == (
        "kubectl -n training create role stageline-launcher-more --verb=patch --resource=pytorchjobs.kubeflow.org && "
        "kubectl -n training create rolebinding stageline-launcher-more --role=stageline-launcher-more "
        "--serviceaccount=training:stageline-launcher"
    )
    assert "--resource=pods/log" in grant_command(missing, "training", "jane")
    assert "--user=jane" in grant_command(missing, "training", "jane")

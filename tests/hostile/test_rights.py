"""Rights: what each subject may and may not do, out of the objects that the chart makes; leases that nobody deletes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from stageline.config.syntax import NAME_KEY
from stageline.jobs.cluster.follow.job_lease import JobLease, lease_state, this_holder
from stageline.kube.client import Api
from stageline.pipeline.items import make_job

from ..chart.conftest import helm, render  # noqa: F401  # fixtures
from ..kube.serving import serving

Documents = list[dict[str, Any]]
Render = Callable[..., Documents]
Subject = tuple[str, str]
"""(user, group), one of them empty."""
SPACE = "stageline"
LAUNCHER = (f"system:serviceaccount:{SPACE}:stageline-launcher", "")
TRAINER = (f"system:serviceaccount:{SPACE}:stageline-trainer", "")
KFP = (f"system:serviceaccount:{SPACE}:pipeline-runner", "")
OTHER = (f"system:serviceaccount:{SPACE}:default", "")
GROUP = ("", "imaging")
NOBODY_MAY = (
    ("delete", "leases.coordination.k8s.io", "any-controller"),
    ("list", "leases.coordination.k8s.io", ""),
    ("patch", "leases.coordination.k8s.io", "any-controller"),
    ("get", "secrets", "stageline-s3"),
    ("list", "secrets", ""),
    ("create", "pods", ""),
    ("delete", "pods", ""),
    ("create", "pods/exec", ""),
    ("update", "pytorchjobs.kubeflow.org", ""),
    ("patch", "pytorchjobs.kubeflow.org/status", ""),
    ("deletecollection", "pytorchjobs.kubeflow.org", ""),
    ("update", "configmaps", "stageline"),
    ("update", "networkpolicies.networking.k8s.io", "octa-film"),
    ("get", "configmaps", "other"),
    ("create", "serviceaccounts/token", "stageline-launcher"),
    ("update", "roles.rbac.authorization.k8s.io", ""),
    ("bind", "roles.rbac.authorization.k8s.io", ""),
    ("impersonate", "serviceaccounts", "stageline-launcher"),
    ("get", "workflows.argoproj.io", ""),
    ("get", "nodes", ""),
)
LAUNCHING = (
    *((verb, "pytorchjobs.kubeflow.org", "") for verb in ("create", "get", "list", "watch", "patch", "delete")),
    *((verb, "leases.coordination.k8s.io", "octa-film") for verb in ("create", "get", "update")),
    ("watch", "pods", ""),
    ("get", "pods/log", ""),
    ("watch", "events", ""),
    *((verb, "networkpolicies.networking.k8s.io", "octa-film") for verb in ("create", "get", "patch", "delete")),
    ("get", "configmaps", "stageline"),
    ("get", "persistentvolumeclaims", "runs"),
)
OF_KFP = (
    ("get", "secrets", "mlpipeline-minio-artifact"),
    ("get", "configmaps", "kfp-launcher"),
    ("create", "workflowtaskresults.argoproj.io", ""),
    ("patch", "workflowtaskresults.argoproj.io", "step"),
)
ALL = (*NOBODY_MAY, *LAUNCHING, *OF_KFP)
Question = tuple[str, str, str]
MAY: dict[str, dict[Subject, tuple[Question, ...]]] = {
    "": {LAUNCHER: LAUNCHING, TRAINER: (), KFP: (), OTHER: (), GROUP: ()},
    "kfp.enabled=true": {LAUNCHER: (*LAUNCHING, *OF_KFP), TRAINER: (), OTHER: ()},
    "kfp.enabled=true,kfp.serviceAccount=pipeline-runner": {
        LAUNCHER: LAUNCHING,
        KFP: (*LAUNCHING, *OF_KFP),
        TRAINER: (),
    },
    "kfp.enabled=true,rbac.subjects[0].kind=Group,rbac.subjects[0].name=imaging": {
        LAUNCHER: (*LAUNCHING, *OF_KFP),
        GROUP: LAUNCHING,
        TRAINER: (),
    },
    "kfp.enabled=true,rbac.create=false": {LAUNCHER: (), TRAINER: (), KFP: ()},
}
"""Values of the chart -> subject -> all that it may of `ALL`, and nothing else of it."""


def is_allowed(documents: Documents, who: Subject, question: Question, namespace: str = SPACE) -> bool:
    """Whether RBAC lets somebody do something in a namespace, out of Roles and RoleBindings alone."""
    verb, what, name = question
    kind, _, sub = what.partition("/")
    plural, _, group = kind.partition(".")
    resource = f"{plural}/{sub}" if sub else plural
    here = [d for d in documents if d["metadata"].get("namespace") == namespace]
    roles = {d["metadata"]["name"]: d["rules"] for d in here if d["kind"] == "Role"}
    for binding in here:
        if binding["kind"] != "RoleBinding" or who not in [subject_of(entry) for entry in binding["subjects"]]:
            continue
        for rule in roles[binding["roleRef"]["name"]]:
            named = name in rule["resourceNames"] if rule.get("resourceNames") else True  # an empty list is all names
            if named and verb in rule["verbs"] and resource in rule["resources"] and group in rule["apiGroups"]:
                return True
    return False


def subject_of(entry: dict[str, Any]) -> Subject:
    if entry["kind"] == "ServiceAccount":
        return (f"system:serviceaccount:{entry['namespace']}:{entry['name']}", "")
    return (entry["name"], "") if entry["kind"] == "User" else ("", entry["name"])


@pytest.mark.parametrize("values", MAY)
def test_each_subject_may_what_the_table_says_and_nothing_else(render: Render, values: str) -> None:  # noqa: F811
    documents = render("", *(("--set", values) if values else ()))
    for who, allowed in MAY[values].items():
        found = [question for question in ALL if is_allowed(documents, who, question)]
        assert found == [question for question in ALL if question in allowed], who
        assert not [q for q in ALL if is_allowed(documents, who, q, "elsewhere")], who


def test_nobody_gets_kfps_rules_by_another_rules_words(render: Render) -> None:  # noqa: F811
    """Two variants: several namespaces share no subject; a user beside a group gets neither Secret."""
    subjects = '[{"kind": "User", "name": "jane"}, {"kind": "ServiceAccount", "name": "robot", "namespace": "ci"}]'
    more = ("--set", "kfp.enabled=true,jobNamespaces={team-a,team-b}", "--set-json", f"rbac.subjects={subjects}")
    documents = render("", *more)
    people: list[Subject] = [("jane", ""), ("system:serviceaccount:ci:robot", "")]
    for space, other in (("team-a", "team-b"), ("team-b", "team-a")):
        for who in people:
            assert [q for q in ALL if is_allowed(documents, who, q, space)] == [q for q in ALL if q in LAUNCHING]
        account = (f"system:serviceaccount:{space}:stageline-launcher", "")
        assert is_allowed(documents, account, OF_KFP[0], space)
        assert not [q for q in ALL if is_allowed(documents, account, q, other)]


@pytest.mark.parametrize("secret", ["null", ""])
def test_no_value_leaves_the_secret_of_kfp_without_a_name(
    helm: Callable[..., Any],  # noqa: F811
    secret: str,
) -> None:
    """A variant: `null` takes a default away in helm, and a rule without names lets an account read every Secret."""
    told = helm("template", "s", "helm/stageline", "--set", f"kfp.enabled=true,kfp.artifactSecret={secret}")
    assert told.returncode != 0
    assert "artifactSecret" in told.stderr


def test_view_and_edit_get_jobs_and_no_lease_and_no_secret(render: Render) -> None:  # noqa: F811
    roles = [d for d in render("company") if d["kind"] == "ClusterRole"]
    assert len(roles) == 2
    for role in roles:
        assert {
            (group, what) for rule in role["rules"] for group in rule["apiGroups"] for what in rule["resources"]
        } == {("kubeflow.org", "pytorchjobs")}
    assert not [d for d in render("company") if d["kind"] == "ClusterRoleBinding"]


# Names -------------------------------------------------------------------------------------------------------------


def test_the_policy_of_names_is_for_the_accounts_that_start_jobs_in_their_namespaces(render: Render) -> None:  # noqa: F811
    setting = "namePolicy.enabled=true,kfp.enabled=true,kfp.serviceAccount=runner,jobNamespaces={a,b}"
    documents = render("", "--set", setting)
    (policy,) = [d for d in documents if d["kind"] == "ValidatingAdmissionPolicy"]
    (binding,) = [d for d in documents if d["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert binding["spec"] == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}
    spec = policy["spec"]
    assert spec["failurePolicy"] == "Fail"
    (condition,) = spec["matchConditions"]
    accounts = json.loads(condition["expression"].removeprefix("request.userInfo.username in "))
    assert accounts == [f"system:serviceaccount:{s}:{name}" for s in "ab" for name in ("stageline-launcher", "runner")]
    made = {(rule["apiGroups"][0], rule["resources"][0]) for rule in spec["matchConstraints"]["resourceRules"]}
    writing = {"create", "update", "patch", "delete"}
    roles = [d for d in documents if d["kind"] == "Role" and d["metadata"]["name"] == "stageline-launcher"]
    granted = {
        (group, resource)
        for rule in roles[0]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if writing & set(rule["verbs"])
    }
    assert granted <= made, "whatever they may write is limited"
    section = yaml.safe_load(next(d for d in documents if d["kind"] == "ConfigMap")["data"]["cluster.yaml"])["cluster"]
    assert section["name_prefix"] == "stageline-"
    assert not [d for d in render() if d["kind"].startswith("Validating")], "only where it is asked for"


def test_jobs_are_called_as_the_policy_wants_and_two_prefixes_are_two_names() -> None:
    from stageline.families import parse_config, raw_preset

    raw = raw_preset("film_flow", "tiny")
    names = {
        make_job(
            parse_config(raw, (f"run={run}", f"cluster.name_prefix={prefix!r}")), "evaluate", ("evaluate",), ""
        ).name
        for run, prefix in (("octa", ""), ("octa", "stageline-"), ("9" * 80, "stageline-"), ("Octa", "stageline-"))
    }
    assert len(names) == 4
    assert [name for name in names if not name.startswith("stageline-")] == ["octa-evaluate"]
    assert all(re.fullmatch(r"[a-z][-a-z0-9]{0,51}", name) for name in names)


# Leases ------------------------------------------------------------------------------------------------------------


class LeaseServer(BaseHTTPRequestHandler):
    """Holds one Lease as an API server does: versions, conflicts, 404. `asked` notes every request's verb."""

    lease: dict[str, Any] | None = None
    asked: list[str]

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _take(self) -> None:
        kind = type(self)
        kind.asked.append(self.command)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        held = kind.lease
        if held is None and self.command != "POST":
            self._answer(404, {"kind": "Status", "message": 'leases "octa-film" not found', "details": {}})
        elif self.command == "GET":
            self._answer(200, held)
        elif self.command == "DELETE":
            kind.lease = None
            self._answer(200, {})
        elif held is not None and body["metadata"].get("resourceVersion") != held["metadata"]["resourceVersion"]:
            self._answer(409, {"kind": "Status", "reason": "Conflict", "message": "changed"})
        else:
            version = str(int(held["metadata"]["resourceVersion"]) + 1) if held else "1"
            kind.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": version, "uid": "lease"}}
            self._answer(200 if held else 201, kind.lease)

    do_GET = do_POST = do_PUT = do_DELETE = _take  # names of the standard library

    def log_message(self, *_: Any) -> None:
        """Nothing to say."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[type[LeaseServer], Api]]:
    """(the server's state, a client of it)."""
    handler = type("Handler", (LeaseServer,), {"lease": None, "asked": []})
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler), tmp_path) as kubeconfig:
        yield handler, Api.connect("train", kubeconfig=str(kubeconfig))


JOB = {"metadata": {"name": "octa-film", "uid": "job-1"}}


def take(api: Api) -> JobLease:
    lease = JobLease(api, "octa-film", this_holder("train", {}), {NAME_KEY: "stageline"}, lambda _: None)
    lease.acquire(lambda _: None, lambda: False)
    return lease


def owners(state: type[LeaseServer]) -> list[tuple[str, str]]:
    assert state.lease is not None
    return [(entry["kind"], entry["uid"]) for entry in state.lease["metadata"]["ownerReferences"]]


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_lease_belongs_to_its_job_and_is_given_back_without_deleting_anything(
    served: tuple[type[LeaseServer], Api],
) -> None:
    state, api = served
    lease = take(api)
    assert owners(state) == []
    lease.belong_to(JOB)
    until(lambda: owners(state) == [("PyTorchJob", "job-1")])
    lease.release()
    assert state.lease is not None
    assert state.lease["spec"]["holderIdentity"] == ""
    assert owners(state) == [("PyTorchJob", "job-1")]
    assert lease_state(state.lease, "next", now=time.time(), alive=None, still_seconds=0, renewed=False) == "free"
    take(api).release()
    assert "DELETE" not in state.asked


def test_a_lease_without_a_job_belongs_to_nothing_that_is_there_once_it_is_given_back(
    served: tuple[type[LeaseServer], Api],
) -> None:
    """The cluster's collector takes what belongs to an object that does not exist."""
    state, api = served
    take(api).release()
    ((kind, first),) = owners(state)
    take(api).release()
    ((_, second),) = owners(state)
    assert kind == "Pod"
    assert first != second
    assert len(first) == 36
    assert "DELETE" not in state.asked


def test_a_lease_outlives_a_job_that_is_deleted_while_its_pods_end(served: tuple[type[LeaseServer], Api]) -> None:
    """Collected with the job before we came to say so: made again, owned by nothing, and still ours."""
    state, api = served
    lease = take(api)
    lease.belong_to(JOB)
    until(lambda: owners(state) == [("PyTorchJob", "job-1")])
    state.lease = None
    lease.belong_to(None)
    until(lambda: state.lease is not None)
    assert owners(state) == []
    lease.release()
    assert owners(state) == [("PyTorchJob", "job-1")], "which is gone, so that this one is collected too"
    assert "DELETE" not in state.asked

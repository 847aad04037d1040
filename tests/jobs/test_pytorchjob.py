"""Rendered jobs: their goldens, the CRD's own schema, pod security, and what kubeflow-training makes of them."""

from __future__ import annotations

import copy
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stageline.config import NAME_PATTERN
from stageline.errors import ConfigError
from stageline.jobs.cluster.render.pytorchjob import USER_FIELDS, label_value, render_job, stamp
from stageline.jobs.job import LONGEST_NAME, Job, job_name

from .jobs import DIGEST, GOLDENS, JOBS, cluster, golden_text, stage_job
from .schema import restricted_faults, schema_faults

NAMES = sorted(JOBS)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    return pod


def env_of(manifest: dict[str, Any]) -> dict[str, Any]:
    entries = pod_of(manifest)["containers"][0]["env"]
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names)), "a variable stands twice"
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}


@pytest.mark.parametrize("name", NAMES)
def test_a_job_is_rendered_as_its_golden_says(name: str) -> None:
    assert golden_text(name) == (GOLDENS / f"{name}.yaml").read_text(), "`make render` writes the goldens anew"


def test_every_golden_has_a_job() -> None:
    assert sorted(path.stem for path in GOLDENS.glob("*.yaml")) == NAMES


def stamped(name: str) -> dict[str, Any]:
    owner = {"name": "step-1", "uid": "0c6f0f4e-0000-4000-8000-000000000000"}
    return stamp(render_job(*JOBS[name]), owner=owner, deadline=1_790_000_000.25, kfp_run_id="5b1d8a3e-run")


@pytest.mark.parametrize("name", NAMES)
def test_the_crd_takes_a_job_with_unknown_fields_refused(name: str) -> None:
    assert schema_faults(render_job(*JOBS[name])) == []
    assert schema_faults(stamped(name)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(("spec", "runPolicy", "cleanPodPolicyy"), "Running", id="policy"),
        pytest.param(("spec", "pytorchReplicaSpecs", "Worker", "replicas"), "2", id="type"),
        pytest.param(("spec", "pytorchReplicaSpecs", "Worker", "template", "spec", "tolerationss"), [], id="pod-field"),
        pytest.param(("spec", "pytorchReplicaSpecs", "Worker", "template", "spec", "description"), "x", id="property"),
    ],
)
def test_the_schema_check_sees_a_wrong_field(path: tuple[str, ...], value: object) -> None:
    job = render_job(*JOBS["film_flow"])
    node = job
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert schema_faults(job)


@pytest.mark.parametrize("name", NAMES)
def test_pods_pass_the_level_restricted(name: str) -> None:
    assert list(restricted_faults(pod_of(render_job(*JOBS[name])))) == []


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda pod: pod.update(hostNetwork=True), id="host-network"),
        pytest.param(lambda pod: pod.pop("securityContext"), id="root"),
        pytest.param(lambda pod: pod["containers"][0].pop("securityContext"), id="container"),
        pytest.param(lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), id="host-path"),
        pytest.param(lambda pod: pod.update(initContainers=[{"name": "i", "image": "x"}]), id="init-container"),
    ],
)
def test_the_check_of_the_level_restricted_sees_what_it_refuses(harm: Any) -> None:
    pod = pod_of(render_job(*JOBS["film_flow"]))
    harm(pod)
    assert list(restricted_faults(pod))


@pytest.mark.parametrize("name", NAMES)
def test_kubeflow_training_reads_a_job_and_writes_the_same(name: str) -> None:
    from kubernetes.client import ApiClient, Configuration

    api = ApiClient(Configuration(host="http://unused.invalid"))
    for job in (render_job(*JOBS[name]), stamped(name)):
        assert api.sanitize_for_serialization(as_model(job)) == job


@pytest.mark.parametrize("name", NAMES)
def test_a_training_client_takes_a_job_as_it_is(name: str) -> None:
    """The server behind it, which answers nothing else, gets the very job that was rendered."""
    from kubeflow.training import TrainingClient
    from kubernetes.client import Configuration

    job, received = render_job(*JOBS[name]), []

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            answer = json.dumps(job).encode()
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *words: Any) -> None:
            """Nothing to the terminal."""

    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        client = TrainingClient(client_configuration=Configuration(host=host), namespace="training")
        client.create_job(as_model(job))
        server.shutdown()
    assert received == [("/apis/kubeflow.org/v1/namespaces/training/pytorchjobs", job)]


def as_model(job: dict[str, Any]) -> Any:
    """The job as kubeflow-training's own class; a field that class does not know fails."""
    from kubeflow.training import KubeflowOrgV1PyTorchJob

    return _deserialize(job, KubeflowOrgV1PyTorchJob)


def _deserialize(plain: Any, kind: Any) -> Any:
    """kubeflow-training's models by their own type table; below them, Kubernetes' own client reads."""
    from kubeflow.training import models
    from kubernetes.client import models as core

    if isinstance(kind, str):
        if kind.startswith("dict("):
            inner = kind.removesuffix(")").split(",", 1)[1].strip()
            return {key: _deserialize(item, inner) for key, item in plain.items()}
        if kind.startswith("list["):
            return [_deserialize(item, kind[5:-1]) for item in plain]
        kind = getattr(models, kind, None) or getattr(core, kind, None)
        if kind is None:
            return plain
    fields = {
        name: _deserialize(plain[key], kind.openapi_types[name])
        for name, key in kind.attribute_map.items()
        if key in plain
    }
    assert {kind.attribute_map[name] for name in fields} == set(plain), f"{kind.__name__} lacks a field"
    return kind(**fields)


def test_every_rank_finds_worker_0_and_nobody_restarts_in_place() -> None:
    job, settings = JOBS["panorama_vlm"]
    manifest = render_job(job, settings)
    env = env_of(manifest)
    assert env["PET_RDZV_ENDPOINT"] == f"{job.name}-worker-0:23456"
    assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"], env["PET_MAX_RESTARTS"]) == ("4", "8", "0")
    assert manifest["spec"]["nprocPerNode"] == "8"  # or the operator writes `auto` over ours
    assert "elasticPolicy" not in manifest["spec"]
    assert set(manifest["spec"]["pytorchReplicaSpecs"]) == {"Worker"}
    assert len(f"{job.name}-worker-999") <= 63
    assert pod_of(manifest)["terminationGracePeriodSeconds"] > int(env["PET_SHUTDOWN_TIMEOUT"])


def test_credentials_are_files_and_stand_nowhere_else() -> None:
    manifest = render_job(*JOBS["panorama_vlm"])
    env = env_of(manifest)
    assert env["STAGELINE_S3_CREDENTIALS"] == "/var/run/secrets/stageline/s3"
    assert not [name for name in env if name.startswith("AWS_") and ("KEY" in name or "TOKEN" in name)]
    assert "secretKeyRef" not in json.dumps(manifest)
    mounts = {mount["name"]: mount["mountPath"] for mount in pod_of(manifest)["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_of(manifest)["volumes"]}
    assert set(mounts) == set(volumes)
    assert mounts["s3"] == env["STAGELINE_S3_CREDENTIALS"]
    assert volumes["ca"]["configMap"]["items"] == [{"key": "bundle.pem", "path": "ca.crt"}]
    assert env["AWS_CA_BUNDLE"] == f"{mounts['ca']}/ca.crt"
    assert pod_of(manifest)["automountServiceAccountToken"] is False


def test_a_pod_gets_the_runs_config_without_where_pods_run() -> None:
    env = env_of(render_job(*JOBS["panorama_vlm"]))
    config = yaml.safe_load(env["STAGELINE_CONFIG"])
    assert config["root"] == "s3://models"
    assert "cluster" not in config
    assert config["stage_overrides"] == {"finetune": {"trainer.max_steps": 10000}}


def test_a_job_that_finds_its_inputs_itself_claims_no_fingerprint_in_its_pods() -> None:
    """It has one as a job, so that starting it twice is one job; what its pods work out depends on what they find."""
    free = render_job(stage_job("film_flow", "film", arguments=("train", "film")), cluster())
    assert free["metadata"]["annotations"]["stageline.dev/fingerprint"] == "3f9c1a2b" * 8
    assert env_of(free)["STAGELINE_FINGERPRINT"] == ""
    assert env_of(render_job(*JOBS["film_flow"]))["STAGELINE_FINGERPRINT"] == "3f9c1a2b" * 8


def test_settings_win_over_our_defaults_but_never_over_the_rendezvous() -> None:
    env = env_of(render_job(*JOBS["panorama_vlm"]))
    assert env["GLOO_SOCKET_IFNAME"] == "net1"
    assert env["NCCL_IB_DISABLE"] == "0"
    assert env_of(render_job(*JOBS["film_flow"]))["GLOO_SOCKET_IFNAME"] == "eth0"


def test_a_pod_without_a_user_leaves_user_and_groups_to_the_cluster() -> None:
    job = stage_job("film_flow", "film", nodes=2)
    context = pod_of(render_job(job, cluster({"run_as_user": None})))["securityContext"]
    assert not set(context) & set(USER_FIELDS)
    assert context["runAsNonRoot"] is True
    assert {pod_of(render_job(job, cluster({"run_as_user": 7})))["securityContext"][key] for key in USER_FIELDS} == {7}


@pytest.mark.parametrize(
    ("arguments", "config", "port"),
    [
        (("train", "film"), {"trainer": {"metrics_port": 9400}}, 9400),
        (("train", "film"), {"stage_overrides": {"film": {"trainer.metrics_port": 9500}}}, 9500),
        (("train", "film"), {"stage_overrides": {"film": {"trainer": {"metrics_port": 9500}}}}, 9500),
        (
            ("train", "film"),
            {"trainer": {"metrics_port": 9400}, "stage_overrides": {"film": {"trainer.metrics_port": 0}}},
            0,
        ),
        (
            ("train", "film"),
            {"trainer": {"metrics_port": 9400}, "stage_overrides": {"backbone": {"trainer.metrics_port": 1}}},
            9400,
        ),
        (("prepare",), {"trainer": {"metrics_port": 9400}}, 0),
        (("evaluate",), {"trainer": {"metrics_port": 9400}}, 0),
        (("train", "film"), {}, 0),
    ],
)
def test_pods_declare_the_port_of_metrics_where_they_serve_it(
    arguments: tuple[str, ...], config: dict[str, Any], port: int
) -> None:
    job = stage_job("film_flow", "film", arguments=arguments, config={"root": "/stageline", **config})
    (container,) = pod_of(render_job(job, cluster()))["containers"]
    declared = [entry["containerPort"] for entry in container["ports"] if entry["name"] == "metrics"]
    assert declared == ([port] if port else [])


def test_rendering_leaves_its_inputs_alone_and_shares_nothing_with_them() -> None:
    job, settings = JOBS["panorama_vlm"]
    before = settings.model_dump_json()
    first = render_job(job, settings)
    kept = copy.deepcopy(first)
    stamp(first, owner={"name": "a", "uid": "b"}, deadline=1.0, kfp_run_id="c")
    assert first == kept
    pod_of(first)["affinity"].clear()
    first["metadata"]["labels"].clear()
    assert settings.model_dump_json() == before
    assert render_job(job, settings) == kept


def test_a_stamp_says_who_owns_the_job_until_when_and_for_which_kfp_run() -> None:
    manifest = stamped("film_flow")
    (owner,) = manifest["metadata"]["ownerReferences"]
    assert owner == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "step-1",
        "uid": "0c6f0f4e-0000-4000-8000-000000000000",
        "controller": False,
        "blockOwnerDeletion": False,
    }
    assert manifest["metadata"]["annotations"]["stageline.dev/deadline"] == "1790000000"
    assert env_of(manifest)["STAGELINE_DEADLINE"] == "1790000000"
    assert manifest["metadata"]["labels"]["stageline.dev/kfp-run-id"] == "5b1d8a3e-run"
    plain = render_job(*JOBS["film_flow"])
    assert stamp(plain, owner=None, deadline=None) == plain


@pytest.mark.parametrize(
    ("job", "settings", "sentences"),
    [
        pytest.param({}, {"image": ""}, ["cluster.image is empty"], id="no-image"),
        pytest.param({"config": {}}, {"storage": {}}, ["'.' is a folder of one machine"], id="no-storage"),
        pytest.param({"config": {"root": "runs"}}, {}, ["lies outside '/stageline'"], id="relative-root"),
        pytest.param({"config": {"root": "/stagelinex"}}, {}, ["lies outside '/stageline'"], id="beside-the-claim"),
        pytest.param({"config": {"root": "memory://x"}}, {}, ["is not shared by pods"], id="memory"),
        pytest.param(
            {"config": {"root": "/stageline", "x": "y" * 100_001}},
            {"image": ""},
            ["cluster.image is empty", "a pod takes 100000"],
            id="all-at-once",
        ),
    ],
)
def test_a_job_that_cannot_run_as_pods_is_refused(
    job: dict[str, Any], settings: dict[str, Any], sentences: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        render_job(stage_job("film_flow", "film", **job), cluster(settings))
    for sentence in sentences:
        assert sentence in str(caught.value)


run_names = st.from_regex(NAME_PATTERN, fullmatch=True)
items = st.one_of(
    st.sampled_from(["prepare_data", "evaluate", "film", "data", "stage"]),
    st.from_regex(r"[a-z][a-z0-9_]{0,40}", fullmatch=True),
)
variants = st.one_of(st.just(""), st.from_regex(r"[A-Za-z0-9_.-]{1,80}", fullmatch=True))
triples = st.tuples(run_names, items, variants)


@given(triples)
def test_names_are_dns_1035_and_short_enough_for_their_pods(triple: tuple[str, str, str]) -> None:
    name = job_name(*triple)
    assert len(name) <= LONGEST_NAME
    assert name == job_name(*triple)
    assert name[0].isalpha()
    assert name[-1].isalnum()
    assert all(c.isdigit() or c == "-" or "a" <= c <= "z" for c in name)


@given(st.sets(triples, max_size=30))
def test_two_jobs_never_share_a_name(found: set[tuple[str, str, str]]) -> None:
    assert len({job_name(*triple) for triple in found}) == len(found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(("a-seed", "stage", ""), ("a", "seed_stage", ""), id="underscore"),
        pytest.param(("a-prepare", "data", ""), ("a", "prepare_data", ""), id="prepare-data"),
        pytest.param(("a", "b", "c"), ("a-b", "c", ""), id="variant"),
        pytest.param(("r2d", "film", ""), ("2d", "film", ""), id="leading-digit"),
        pytest.param(("a", "b", "x_y"), ("a", "b", "x-y"), id="lossy"),
        pytest.param(("a", "s", "v" * 80), ("a", "s", "v" * 79), id="long"),
        pytest.param(("Octa", "film", ""), ("octa", "film", ""), id="capitals"),
        pytest.param(("octa.2", "film", ""), ("octa-2", "film", ""), id="dot"),
        pytest.param(("octa_2", "film", ""), ("octa.2", "film", ""), id="underscore-and-dot"),
        pytest.param(("r" * 80, "film", ""), ("r" * 79, "film", ""), id="long-run"),
    ],
)
def test_names_that_would_read_alike_differ(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert job_name(*one) != job_name(*other)


def test_everyday_names_are_readable() -> None:
    assert job_name("octa", "film") == "octa-film"
    assert job_name("octa", "prepare_data") == "octa-prepare-data"
    assert job_name("octa", "evaluate") == "octa-evaluate"
    assert job_name("octa", "finetune", "anyres-e2p_bimamba").startswith("octa-finetune-anyres-e2p-bimamba-")


@given(st.text(min_size=1, max_size=90))
def test_any_text_becomes_a_label(text: str) -> None:
    import re

    value = label_value(text)
    assert len(value) <= 63
    assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", value)


def test_a_job_starts_as_many_ranks_on_one_machine_as_on_the_cluster() -> None:
    assert Job("a-b", (), nodes=2, processes=3).world_size == 6
    assert DIGEST in cluster().image

"""What doctor finds without a cluster: images in a registry, stores, slow checks."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from stageline.cli import main
from stageline.config import ClusterConfig
from stageline.doctor import Setup, examine, raise_if_wrong
from stageline.doctor.line import Check, Line, line_of_error, ok, unknown, wrong
from stageline.doctor.namespace import namespace_checks
from stageline.doctor.registry import ImageName, check_image, image_without_version, parse_image
from stageline.doctor.running import run_checks
from stageline.doctor.storage import check_store
from stageline.errors import ClusterError, ClusterUnavailableError, DoctorError
from stageline.families import family_config, parse_config
from stageline.kube.client import Api

from ..jobs.jobs import cluster
from ..kube.served_objects import ObjectServer
from ..kube.serving import serving
from ..store.gate import Gate
from .registry import DIGEST, registry


@pytest.mark.parametrize(
    ("reference", "stem", "expected"),
    [
        ("python:3.11", "python", ImageName("registry-1.docker.io", "library/python", "3.11")),
        ("team/trainer", "team/trainer", ImageName("registry-1.docker.io", "team/trainer", "latest")),
        ("docker.io/team/trainer:1", "docker.io/team/trainer", ImageName("registry-1.docker.io", "team/trainer", "1")),
        ("docker.io/python", "docker.io/python", ImageName("registry-1.docker.io", "library/python", "latest")),
        ("index.docker.io/a/b", "index.docker.io/a/b", ImageName("registry-1.docker.io", "a/b", "latest")),
        ("localhost:5000/a/b:1", "localhost:5000/a/b", ImageName("localhost:5000", "a/b", "1")),
        (f"ghcr.io/a/b:1@{DIGEST}", "ghcr.io/a/b", ImageName("ghcr.io", "a/b", DIGEST)),
        (f"registry:5000/b@{DIGEST}", "registry:5000/b", ImageName("registry:5000", "b", DIGEST)),
    ],
)
def test_an_image_is_read_as_runtimes_read_it(reference: str, stem: str, expected: ImageName) -> None:
    assert parse_image(reference) == expected
    assert image_without_version(reference) == stem


def test_an_image_that_is_there_is_found_and_a_tag_is_pinned() -> None:
    with registry() as server:
        line = check_image("image", f"{server.host}/team/trainer:1.0", 5)
        assert line.state == "ok"
        assert f"cluster.image={server.host}/team/trainer@{DIGEST}" in line.text
        pinned = check_image("image", f"{server.host}/team/trainer@{DIGEST}", 5)
        assert (pinned.state, pinned.text) == ("ok", f"{server.host}/team/trainer@{DIGEST}")
        missing = check_image("image", f"{server.host}/team/trainer:2.0", 5)
        assert missing.state == "wrong"
        assert "team/trainer 2.0" in missing.text


@pytest.mark.parametrize(("mode", "words"), [("private", "no plain https:// URL"), ("broken", "answers 500")])
def test_what_a_registry_keeps_to_itself_is_unknown(mode: str, words: str) -> None:
    with registry() as server:
        server.mode = mode
        line = check_image("image", f"{server.host}/team/trainer:1.0", 5)
    assert line.state == "unknown"
    assert words in line.text


def test_a_registry_that_is_not_reached_is_unknown() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        line = check_image("image", f"127.0.0.1:{taken.getsockname()[1]}/a:1", 5)
    assert line.state == "unknown"
    assert "does not answer from here" in line.text
    assert check_image("image", "", 5).state == "unknown"


def test_a_local_store_is_probed_and_left_empty(tmp_path: Path) -> None:
    line = check_store("store", str(tmp_path / "root"), "", "")
    assert line.state == "ok", line.text
    assert [path for path in (tmp_path / "root").rglob("*") if path.is_file() and path.name[0] != "."] == []
    (tmp_path / "file").write_text("")
    assert check_store("store", str(tmp_path / "file"), "", "").state == "wrong"
    assert check_store("store", "", "", "").state == "unknown"
    assert check_store("store", "/nowhere/runs", "/nowhere", "").state == "unknown"


def test_a_bucket_is_probed_and_refusals_are_told(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_store("store", "s3://stageline-test/doctor", "", "").state == "ok"
    missing = check_store("store", "s3://no-such-bucket/doctor", "", "")
    assert missing.state == "wrong"
    assert "no bucket" in missing.text
    with Gate(s3_environment) as gate:
        gate.accepted = set()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", gate.url)
        refused = check_store("store", "s3://stageline-test/doctor", "", "")
    assert refused.state == "wrong"
    assert "could not write" in refused.text
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    hidden = check_store("store", "s3://stageline-test/doctor", "", "s3-keys")
    assert hidden.state == "unknown"
    assert "'s3-keys'" in hidden.text
    assert check_store("store", "s3://stageline-test/doctor", "", "").state == "wrong"


def test_checks_run_at_once_and_one_that_hangs_or_breaks_hides_no_other() -> None:
    def broken() -> Any:
        raise KeyError("x")

    def refused() -> Any:
        raise ClusterError("no", remedy="do it", code="E_WEBHOOK")

    checks = [
        Check("slow", lambda: time.sleep(30) or ok("slow", "")),  # type: ignore[func-returns-value]
        *(Check(f"quick {n}", lambda n=n: time.sleep(0.15) or ok(f"quick {n}", "")) for n in range(10)),  # type: ignore[misc]
        Check("broken", broken),
        Check("refused", refused),
    ]
    start = time.monotonic()
    lines = {line.name: line for line in run_checks(checks, 1.2)}
    assert time.monotonic() - start < 2.2
    assert list(lines) == [check.name for check in checks]
    assert (lines["slow"].state, lines["broken"].state, lines["refused"].state) == ("unknown", "unknown", "wrong")
    assert all(lines[f"quick {n}"].state == "ok" for n in range(10))


def test_what_may_not_be_seen_is_unknown_and_what_is_wrong_ends_in_17() -> None:
    assert line_of_error("x", ClusterError("no", remedy="", code="E_FORBIDDEN")).state == "unknown"
    assert line_of_error("x", ClusterUnavailableError("away", remedy="")).state == "unknown"
    assert line_of_error("x", ClusterError("no", remedy="r", code="E_QUOTA")) == wrong("x", "no", "r")
    raise_if_wrong([ok("a", ""), unknown("b", "")])
    with pytest.raises(DoctorError, match="1 of 2 checks found something wrong: b") as caught:
        raise_if_wrong([ok("a", ""), wrong("b", "", "")])
    assert caught.value.exit_code == 17


def test_without_a_cluster_the_local_part_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    lines = {line.name: line for line in examine(Setup(ClusterConfig(), str(tmp_path / "root")))}
    assert lines["cluster"].state == "unknown"
    assert lines["store"].state == lines["python"].state == "ok"
    assert main(["doctor", f"root={tmp_path / 'root'}", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in plain] == list(lines)
    (tmp_path / "file").write_text("")
    assert main(["doctor", f"root={tmp_path / 'file'}"]) == 17
    shown = capsys.readouterr()
    assert "WRONG" in shown.out
    assert "store" in shown.err


def test_a_claim_that_is_not_there_comes_with_the_command_for_the_chart_of_that_name(tmp_path: Path) -> None:
    section = cluster({"defaults": "imaging", "storage": {"claim": "runs"}})
    with serving(ObjectServer(), tmp_path) as kubeconfig:
        checks = namespace_checks(Api.connect("train", kubeconfig=str(kubeconfig)), section, 1)
        (line,) = [check.call() for check in checks if check.name == "claim"]
    assert (line.state, line.text) == ("wrong", "there is no claim 'runs'")
    made = "nameOverride=imaging,storage.claim.create=true,storage.claim.name=runs"
    assert f"--install imaging helm/stageline -n train --reset-then-reuse-values --set {made};" in line.remedy


def namespace_line(name: str, server: ObjectServer, section: ClusterConfig, path: Path, nodes: int = 1) -> Line:
    with serving(server, path) as kubeconfig:
        checks = namespace_checks(Api.connect("train", kubeconfig=str(kubeconfig)), section, nodes)
        (line,) = [check.call() for check in checks if check.name == name]
    return line


def test_a_secret_to_pull_with_comes_with_the_command_that_makes_one_of_its_type(tmp_path: Path) -> None:
    server, section = ObjectServer(), cluster({"pull_secrets": ["there", "other", "absent"]})
    server.put("secrets", {"metadata": {"name": "there"}, "type": "kubernetes.io/dockerconfigjson"})
    server.put("secrets", {"metadata": {"name": "other"}, "type": "Opaque"})
    line = namespace_line("secrets", server, section, tmp_path)
    assert line.state == "wrong"
    assert "secret 'other' has type 'Opaque'" in line.text
    assert "there is no secret 'absent'" in line.text
    made = "kubectl -n train create secret docker-registry absent --docker-server=registry.example.org "
    assert made in line.remedy
    assert "kubectl -n train delete secret other && kubectl -n train create secret docker-registry other" in line.remedy
    assert "generic" not in line.remedy


def test_keys_that_lack_come_with_a_command_that_goes_where_the_secret_exists(tmp_path: Path) -> None:
    server, section = ObjectServer(), cluster({"storage": {"s3": {"secret": "keys", "ca_config_map": "ca"}}})
    server.put("secrets", {"metadata": {"name": "keys"}, "data": {"AWS_ACCESS_KEY_ID": "YQ=="}})
    line = namespace_line("secrets", server, section, tmp_path)
    assert "secret 'keys' has no AWS_SECRET_ACCESS_KEY; there is no configmap 'ca'" in line.text
    change, _, make = line.remedy.rpartition(" && ")
    assert change.endswith("--dry-run=client -o yaml | kubectl -n train apply -f -")
    assert make == "kubectl -n train create configmap ca --from-file=ca.crt=<file>"


def test_claims_of_mounts_are_looked_at_too(tmp_path: Path) -> None:
    mounts = [{"mount_path": "/a", "claim": "read"}, {"mount_path": "/b", "claim": "gone", "read_only": False}]
    server, section = ObjectServer(), cluster({"mounts": mounts})
    bound = {"status": {"phase": "Bound"}}
    server.put(
        "persistentvolumeclaims",
        {"metadata": {"name": "stageline-data"}, "spec": {"accessModes": ["ReadWriteMany"]}, **bound},
    )
    server.put(
        "persistentvolumeclaims", {"metadata": {"name": "read"}, "spec": {"accessModes": ["ReadOnlyMany"]}, **bound}
    )
    line = namespace_line("claim", server, section, tmp_path, nodes=2)
    assert (line.state, line.text) == ("wrong", "there is no claim 'gone', which cluster.mounts names")
    server = ObjectServer()
    for name in ("stageline-data", "read", "gone"):
        server.put(
            "persistentvolumeclaims", {"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"]}, **bound}
        )
    one = namespace_line("claim", server, section, tmp_path)
    assert (one.state, one.text.count("is bound")) == ("ok", 3)


def test_without_kueue_the_override_that_takes_the_queue_away_is_one_that_is_taken(tmp_path: Path) -> None:
    line = namespace_line("queue", ObjectServer(), cluster({"queue": "train"}), tmp_path)
    assert line.state == "wrong"
    assert "Kueue is not installed" in line.text
    _, _, override = line.remedy.partition("or set ")
    assert parse_config(family_config("film_flow").presets["tiny"], [override], "it").cluster.queue == ""


@pytest.mark.parametrize(
    ("reference", "remedy"),
    [
        ("team/stageline/trainer", "REGISTRY={host}/team PUSH=1"),
        ("stageline/launcher", "REGISTRY={host} PUSH=1"),
        ("team/own", "push it, or set"),
    ],
)
def test_an_image_that_is_not_there_comes_with_the_command_that_pushes_it_there(reference: str, remedy: str) -> None:
    with registry() as server:
        line = check_image("image", f"{server.host}/{reference}:2.0", 5)
    assert line.state == "wrong"
    assert remedy.format(host=server.host) in line.remedy

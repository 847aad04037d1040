"""`stageline job` where no cluster is needed: rendering, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stageline.cli import main

TINY = ["--family", "film_flow", "--preset", "tiny"]
PLACED = ["cluster.image=registry.example.org/trainer:1", "cluster.storage.claim=data", "root=/stageline"]


def test_rendering_prints_every_stage_as_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "render", *TINY, *PLACED]) == 0
    out, err = capsys.readouterr()
    made = [(item["kind"], item["metadata"]["name"]) for item in yaml.safe_load_all(out)]
    assert made == [(kind, name) for name in ("tiny-backbone", "tiny-film") for kind in ("NetworkPolicy", "PyTorchJob")]
    assert "is a tag" in err


def test_rendering_takes_items_and_settings_of_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["stage_overrides.film.trainer.nodes=3", "stage_overrides.film.cluster.queue=research"]
    own.append("cluster.network_policy=off")
    assert main(["job", "render", "prepare_data", "film", *TINY, *PLACED, *own]) == 0
    first, second = yaml.safe_load_all(capsys.readouterr().out)
    assert first["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 1
    assert second["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 3
    assert "kueue.x-k8s.io/queue-name" not in first["metadata"]["labels"]
    assert second["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"


def test_rendering_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "render", *TINY, *PLACED, "-o", str(tmp_path / "jobs")]) == 0
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["backbone.yaml", "film.yaml"]
    assert capsys.readouterr().out.count("wrote") == 2


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        pytest.param(["render", *TINY], 2, "cluster.image is empty", id="nothing-set"),
        pytest.param(["render", *TINY], 2, "is a folder of one machine", id="and-all-at-once"),
        pytest.param(["render", "flim", *TINY, *PLACED], 2, "did you mean 'film'", id="stage"),
        pytest.param(["render", *TINY, *PLACED, "cluster.shared_memory=lots"], 2, "no quantity", id="quantity"),
        pytest.param(["submit", "film", *TINY, *PLACED], 13, "no cluster to talk to", id="submit"),
        pytest.param(["list"], 13, "export KUBECONFIG=", id="list"),
        pytest.param(["logs", "tiny-film"], 13, "no cluster to talk to", id="logs"),
        pytest.param(["cancel", "tiny-film"], 13, "no cluster to talk to", id="cancel"),
        pytest.param(["cancel"], 2, "cancel which jobs?", id="cancel-nothing"),
        pytest.param(["cancel", "a", "--all-of-run", "b"], 2, "one of the two", id="cancel-both"),
    ],
)
def test_what_is_refused(
    words: list[str],
    code: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    assert main(["job", *words]) == code
    assert sentence in capsys.readouterr().err

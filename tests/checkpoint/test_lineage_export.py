"""Where a checkpoint comes from, and what leaves for other programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from stageline.checkpoint.export import export
from stageline.checkpoint.layout import CheckpointRef, StageDir, resolve
from stageline.checkpoint.lineage import describe, lineage
from stageline.checkpoint.metadata import METADATA_NAME, ParentRecord, parse_metadata
from stageline.errors import CheckpointError, ConfigError
from stageline.store import Store
from tests.checkpoint.samples import equal, provenance, save, snapshot, tensors, writing


def link(ref: CheckpointRef) -> ParentRecord:
    section = {"section": "film", "outcome": "fresh", "reason": "new heads", "patterns": ["film.*"]}
    return ParentRecord(
        uri=ref.uri,
        digest=ref.digest,
        content=ref.content,
        stage=ref.metadata.stage,
        step=ref.metadata.step,
        weights="ema",
        sections=[section],
    )


def chain(root: Store | str) -> tuple[CheckpointRef, CheckpointRef, CheckpointRef]:
    """backbone -> film -> film of another run."""
    with writing(StageDir(root, "a", "backbone"), prov=provenance(stage="backbone")) as writer:
        backbone = writer.save(snapshot(10))
    with writing(StageDir(root, "a", "film"), prov=provenance(parents={"default": link(backbone)})) as writer:
        film = writer.save(snapshot(20))
    parents = {"default": link(film), "other": link(backbone)}
    with writing(StageDir(root, "b", "film"), prov=provenance(run="b", parents=parents)) as writer:
        return backbone, film, writer.save(snapshot(30))


def shape(entries: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [(e["depth"], e["role"], e["run"], e["stage"], e["step"], e["status"]) for e in entries]


def test_lineage_tells_the_whole_story(root: Store) -> None:
    backbone, _, last = chain(root)
    entries = lineage(last)
    assert shape(entries) == [
        (0, "", "b", "film", 30, "present"),
        (1, "default", "a", "film", 20, "present"),
        (2, "default", "a", "backbone", 10, "present"),
        (1, "other", "a", "backbone", 10, "present"),
    ]
    assert entries[2]["digest"] == backbone.digest
    assert entries[1]["weights"] == "ema"
    assert entries[1]["sections"][0]["outcome"] == "fresh"  # type: ignore[index]


def test_a_parent_that_is_gone_or_another_is_told(tmp_path: Path) -> None:
    backbone, film, last = chain(str(tmp_path))
    backbone.store.delete_tree("training")
    backbone.store.delete(METADATA_NAME)
    film.store.put(METADATA_NAME, last.metadata.to_bytes())
    entries = lineage(last)
    assert [(e["stage"], e["status"]) for e in entries] == [
        ("film", "present"),
        ("film", "another"),
        ("backbone", "another"),
    ]
    for info in backbone.store.list():
        backbone.store.delete(info.key)
    assert [e["status"] for e in lineage(last)] == ["present", "another", "missing"]


def test_lineage_survives_moving_the_whole_tree(tmp_path: Path) -> None:
    chain(str(tmp_path / "old"))
    shutil.move(tmp_path / "old", tmp_path / "new")
    entries = lineage(f"{tmp_path}/new/runs/b/film")
    assert [e["status"] for e in entries] == ["present"] * 4
    assert all(str(e["uri"]).startswith(f"{tmp_path}/new/") for e in entries)


def test_a_description_is_json_and_has_what_people_ask_for(directory: StageDir) -> None:
    (ref,) = save(directory, 5)
    plain = json.loads(json.dumps(describe(ref.uri)))
    assert (plain["stage"], plain["step"], plain["digest"]) == ("film", 5, ref.digest)
    assert plain["groups"]["model"]["tensors"] == len(tensors(5))
    assert plain["groups"]["model"]["parameters"] == sum(t.numel() for t in tensors(5).values())
    assert plain["bytes"] == sum(info.size for info in ref.store.list() if info.key in ref.metadata.files)
    assert plain["schema"] == "stageline/2"


@pytest.mark.parametrize(("weights", "seed"), [(None, 1005), ("raw", 5), ("ema", 1005)])
def test_an_export_is_read_by_the_safetensors_library(
    directory: StageDir, tmp_path: Path, weights: str | None, seed: int
) -> None:
    (ref,) = save(directory, 5)
    target = export(ref, tmp_path / "out", weights=weights)  # type: ignore[arg-type]
    assert equal(safetensors.torch.load_file(target / "model.safetensors"), tensors(seed))
    metadata = parse_metadata((target / METADATA_NAME).read_bytes(), "export")
    assert metadata.export_of == ref.digest
    assert set(metadata.files) == {path.name for path in target.iterdir()} - {METADATA_NAME}
    with pytest.raises(CheckpointError, match="is an export"):
        resolve(str(target))


def test_a_damaged_checkpoint_is_not_exported(directory: StageDir, tmp_path: Path) -> None:
    (ref,) = save(directory, 5)
    ref.store.put("model.safetensors", b"x")
    with pytest.raises(CheckpointError, match="can't be exported"):
        export(ref, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_never_writes_over_anything(directory: StageDir, tmp_path: Path) -> None:
    (ref,) = save(directory, 5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"):
        export(ref, tmp_path / "mine")
    with pytest.raises(ConfigError, match="no export format 'onnx'"):
        export(ref, tmp_path / "out", "onnx")
    with writing(directory) as writer:
        raw_only = writer.save(snapshot(6, ema=None))
    with pytest.raises(CheckpointError, match="no ema weights"):
        export(raw_only, tmp_path / "out", weights="ema")

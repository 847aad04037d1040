"""A finished run of schema `stageline/1`, kept as data: verified, seeded from, evaluated, exported, not continued."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stageline.checkpoint.admission import admit
from stageline.checkpoint.export import export
from stageline.checkpoint.layout import StageDir, resolve
from stageline.checkpoint.lineage import lineage
from stageline.checkpoint.metadata import CONTENT_PATTERNS, is_continuable
from stageline.checkpoint.verify import verify
from stageline.config import canonical_json
from stageline.errors import CheckpointError
from stageline.families import parse_config
from stageline.families.film_flow.config import FAMILY_CONFIG, FilmFlowConfig
from stageline.stage import stage_config
from stageline.verbs.admitted import own_config
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.predict import load
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

DATA = Path(__file__).parents[3] / "golden" / "checkpoints" / "v1"
STAGES = ("backbone", "film")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "root"))


def config_at(root: Path, *words: str) -> FilmFlowConfig:
    """The config of the run's film stage, at another root and under another name."""
    raw = own_config(resolve(f"{root}/runs/old/film"))
    config = parse_config({**raw, "root": str(root)}, ["run=new", *words])
    assert isinstance(config, FilmFlowConfig)
    return config


@pytest.mark.parametrize("stage", STAGES)
def test_it_is_whole_and_tells_where_it_comes_from(root: Path, stage: str) -> None:
    ref = resolve(f"{root}/runs/old/{stage}")
    assert (ref.metadata.schema_version, is_continuable(ref.metadata)) == ("stageline/1", False)
    assert verify(ref) == []
    hashes = {name: ref.metadata.files[f"{name}.safetensors"].sha256 for name in ("model", "ema")}
    assert CONTENT_PATTERNS == ("model*.safetensors", "ema*.safetensors")
    weights = {f"{name}.safetensors": value for name, value in hashes.items()}
    assert ref.content == hashlib.sha256(canonical_json(weights).encode()).hexdigest()
    assert {entry["status"] for entry in lineage(ref)} == {"present"}
    assert all(str(entry["uri"]).startswith(f"{root}/runs/old/") for entry in lineage(ref))


def test_it_seeds_a_stage_and_is_evaluated(root: Path) -> None:
    config = config_at(root, f"parents={json.dumps({'film': {'default': 'runs/old/backbone'}})}", "stages=[film]")
    data = str(prepare_data(config).reference)
    result = train_stage(config, "film", data=data)
    ref = resolve(str(result.reference))
    assert ref.metadata.schema_version == "stageline/2"
    assert ref.metadata.parents["default"].digest == resolve(f"{root}/runs/old/backbone").digest
    record = evaluate_checkpoint(config, f"{root}/runs/old/film", data)
    assert record.metrics["dice"] >= 0


def test_it_is_loaded_and_exported_with_the_weights_of_its_files(root: Path, tmp_path: Path) -> None:
    ref = resolve(f"{root}/runs/old/film")
    file = load_file(Path(ref.uri) / "ema.safetensors")
    exported = load_file(export(ref, tmp_path / "out") / "model.safetensors")
    own = load(ref.uri).state_dict()
    for found in (exported, own):
        assert set(found) == set(file)
        assert all(torch.equal(found[name].cpu(), file[name]) for name in file)


def test_it_is_neither_continued_nor_reused(root: Path) -> None:
    ref = resolve(f"{root}/runs/old/film")
    stage = FAMILY_CONFIG.stages["film"]
    own = stage_config(config_at(root), stage)
    with pytest.raises(CheckpointError, match="an earlier version saved it; it can seed a stage, be evaluated and exp"):
        admit(
            ref,
            "resume",
            family="film_flow",
            stages=STAGES,
            facts=FAMILY_CONFIG.facts(own, stage),
            rules=FAMILY_CONFIG.fact_rules,
        )
    directory = StageDir(str(root), "old", "film")
    fingerprint = ref.metadata.stage_fingerprint
    assert directory.handed_on("best", fingerprint) is None
    found = directory.survey()
    assert (found.is_finished(fingerprint), found.to_continue(fingerprint)) == (False, None)
    assert found.refs[-1].digest == ref.digest, "it is still there for the names that lead to it"

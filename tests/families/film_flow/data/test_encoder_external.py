"""The frozen encoder as weights of others: locked by prepare, features keyed by its digest, read from the root."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stageline.checkpoint.layout import resolve
from stageline.data.splits import silent
from stageline.encoders.lock import EXTERNALS, LOCK_NAME
from stageline.errors import CheckpointError, DataError
from stageline.families.film_flow.conditions.encoder import encoder_settings
from stageline.families.film_flow.config import FAMILY_CONFIG, FilmFlowConfig
from stageline.store import open_store
from stageline.verbs.predict import load
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage
from stageline.work.decision import decide, decide_data

from .tiny_encoders import save_clip


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    save_clip(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def with_clip(make_config: Callable[..., FilmFlowConfig]) -> Callable[..., FilmFlowConfig]:
    def make(folder: Path, *overrides: str) -> FilmFlowConfig:
        vlm = {"encoder": "clip", "model_name": str(folder), "feature_dim": 12}
        words = [f"model.vlm_film_config.{key}={json.dumps(value)}" for key, value in vlm.items()]
        return make_config("model.cond_source=image", "trainer.accelerator=cpu", *words, *overrides)

    return make


def change(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor + 0.25 for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_offline_encoder_has_no_weights(make_config: Callable[..., FilmFlowConfig], clip: Path) -> None:
    """Neither has a stage without FiLM; what their splits are made from is what it was."""
    for config in (make_config(), make_config("model.use_vlm_film=false")):
        for stage in FAMILY_CONFIG.stages:
            assert FAMILY_CONFIG.externals(config, stage) == ()
            assert all(split.externals == () for split in FAMILY_CONFIG.splits(config, stage))
        assert "digest" not in encoder_settings(config).identity()


def test_features_are_keyed_by_the_digest(with_clip: Callable[..., FilmFlowConfig], clip: Path) -> None:
    config = with_clip(clip)
    before = decide(config, "film")
    assert not before.fingerprint
    assert any("external 'encoder'" in reason and "is not locked yet" in reason for reason in before.reasons)
    first = prepare_data(config).splits
    digest = decide(config, "film").digests["encoder"]
    assert first["train-features"].facts["condition"]["digest"] == digest
    assert "model_name" not in first["train-features"].facts["condition"]
    moved = clip.with_name("moved")
    clip.rename(moved)
    strict = "model.vlm_film_config.cache_only=true"
    again = prepare_data(with_clip(moved, strict)).splits  # the same weights elsewhere: no encoder is loaded
    assert again["train-features"].facts == first["train-features"].facts
    change(moved)
    with pytest.raises(DataError, match=r"not in the cache|knows nothing of the encoder"):
        prepare_data(with_clip(moved, strict))


def test_other_weights_make_features_anew_and_pictures_not(
    with_clip: Callable[..., FilmFlowConfig], clip: Path
) -> None:
    config = with_clip(clip)
    first = prepare_data(config).splits
    change(clip)
    assert decide_data(config).action == "run"
    said: list[str] = []
    second = prepare_data(config, lambda _done, _total, what: said.append(what)).splits
    assert any(", was " in line for line in said), "the change is told"
    for name in first:
        assert (first[name].fingerprint == second[name].fingerprint) is not name.endswith("-features")


def test_a_stage_needs_the_root_alone_and_prediction_refuses_other_weights(
    with_clip: Callable[..., FilmFlowConfig], clip: Path, tmp_path: Path
) -> None:
    """Under scope `crop` training asks the encoder itself, which lies nowhere but below the root."""
    config = with_clip(clip, "model.vlm_scope=crop", "trainer.max_steps=1", "stages=[film]", "run=r")
    data = str(prepare_data(config).reference)
    clip.rename(clip.with_name("away"))
    ref = resolve(str(train_stage(config, "film", data=data).reference))
    record = ref.metadata.externals["encoder"]
    assert (record.source, record.tensors) == (str(clip), {})
    lock = json.loads(open_store(tmp_path).get(f"{EXTERNALS}/{LOCK_NAME}"))
    assert [row["digest"] for row in lock["externals"]] == [record.digest]
    assert load(ref.uri).metadata.externals["encoder"].digest == record.digest
    shutil.copytree(clip.with_name("away"), clip)
    change(clip)
    prepare_data(config, silent)
    with pytest.raises(CheckpointError, match=rf"external encoder \(.*\): digest {record.digest[:12]} -> "):
        load(ref.uri)

"""Checkpoints of this family as files: three sources that agree, bitwise reload, tampering, no way around the plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from stageline.checkpoint.admission import admit
from stageline.checkpoint.header import header_texts, read_header
from stageline.checkpoint.layout import CheckpointRef, StageDir, open_checkpoint
from stageline.checkpoint.legacy import commit_import
from stageline.checkpoint.metadata import METADATA_NAME, MODEL_FILE, Provenance
from stageline.checkpoint.tensors import load_state, read_tensors, records_of, write_tensors
from stageline.checkpoint.verify import verify
from stageline.config import to_yaml
from stageline.contract import Parent
from stageline.errors import CheckpointError
from stageline.families import parse_config
from stageline.families.film_flow.config import FAMILY_CONFIG, FilmFlowConfig
from stageline.families.film_flow.config.stages import STAGES
from stageline.families.film_flow.facts import facts
from stageline.families.film_flow.inheritance import inherit
from stageline.families.film_flow.model.construction import build_model
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.verbs.admitted import admit_model
from tests.families.film_flow.model.subsets import every_subset

HASH = "0" * 64


def config_of(stages: tuple[int, ...] | None, **model: Any) -> FilmFlowConfig:
    """A config whose network is small; None states no decoder stages."""
    vlm = {"encoder": "stub", "feature_dim": 12, "cond_dim": 10, "film_hidden_dim": 14}
    plain: dict[str, Any] = {"image_size": 32, "model_channels": 8, "vlm_film_config": vlm, **model}
    if stages is not None:
        plain |= {"vlm_film_decoder_stages": list(stages)} if stages else {"use_vlm_film": False}
    config = parse_config({"family": "film_flow", "model": plain, "evaluate": {"weights": "raw"}})
    assert isinstance(config, FilmFlowConfig)
    return config


@pytest.fixture
def commit(request: pytest.FixtureRequest) -> Callable[..., tuple[FilmFlowModel, CheckpointRef]]:
    """commit(stages): a model off its identity and its checkpoint in a store of its own."""

    def write(stages: tuple[int, ...], run: str = "a") -> tuple[FilmFlowModel, CheckpointRef]:
        config = config_of(stages)
        model = build_model(config).eval()
        rng = torch.Generator().manual_seed(4)
        for name, parameter in model.film.named_parameters():
            if "fc2" in name:
                parameter.data.normal_(0.0, 0.3, generator=rng)
        stage = "film" if stages else "backbone"
        said = facts(config)
        provenance = Provenance(
            family="film_flow", stage=stage, run=run, identity=HASH, stage_fingerprint=HASH, facts=said
        )
        root = f"memory://film-{abs(hash(request.node.nodeid))}"
        ref = commit_import(
            StageDir(root, run, stage), provenance, model.state_dict(), config_yaml=to_yaml(config), notes={}
        )
        return model, ref

    return write


def evaluate(ref: CheckpointRef, config: FilmFlowConfig) -> FilmFlowModel:
    model = admit_model(config, ref)[1]
    assert isinstance(model, FilmFlowModel)
    return model


@pytest.mark.parametrize("stages", every_subset(none=True))
def test_names_header_and_metadata_agree_and_reload_is_bitwise(
    commit: Any, inputs: Any, stages: tuple[int, ...]
) -> None:
    """Acceptance check 5."""
    model, ref = commit(stages)
    assert verify(ref) == []
    texts = read_header(ref.store, MODEL_FILE).texts
    assert json.loads(texts["vlm_film_trained_stages"]) == list(stages)
    assert json.loads(texts["decoder_channels"]) == [32, 24, 16, 8]
    facts = ref.metadata.facts
    assert facts["vlm_film_trained_stages"] == list(stages)
    assert facts["plan_fingerprint"] == (model.plan_fingerprint if stages else "")
    assert sorted({n.split(".")[1] for n in read_tensors(ref) if n.startswith("film.")}) == [str(s) for s in stages]
    again = build_model(config_of(stages)).eval()
    load_state(again, read_tensors(ref), where=ref.uri)
    assert again.plan.stages == stages
    assert again.plan_fingerprint == model.plan_fingerprint
    condition = inputs.condition if stages else None
    with torch.no_grad():
        assert torch.equal(again(*inputs.positional(), condition), model(*inputs.positional(), condition))


@pytest.mark.parametrize("stages", [(), (2, 3)], ids=str)
def test_evaluation_takes_the_plan_of_the_file(commit: Any, inputs: Any, stages: tuple[int, ...]) -> None:
    model, ref = commit(stages)
    again = evaluate(ref, config_of(None if stages else ()))
    assert again.plan == model.plan
    condition = inputs.condition if stages else None
    with torch.no_grad():
        assert torch.equal(again(*inputs.positional(), condition), model(*inputs.positional(), condition))


def forge(
    ref: CheckpointRef, facts: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None, **also: Any
) -> CheckpointRef:
    """The checkpoint with other facts or tensors, hashes and seal made to fit; the header too if `also` says so.

    A forger as good as the format allows: only what the three sources say about each other can give him away.
    """
    own = read_tensors(ref)
    state = dict(own if tensors is None else tensors)
    metadata = ref.metadata.model_copy(update={"facts": {**ref.metadata.facts, **(facts or {})}})
    texts = header_texts(metadata if also.get("header") else ref.metadata, "raw")
    record = write_tensors(ref.store, MODEL_FILE, state, texts)
    metadata = metadata.model_copy(
        update={"files": {**metadata.files, MODEL_FILE: record}, "tensors": {"model": records_of(state)}}
    )
    ref.store.put(METADATA_NAME, metadata.to_bytes())
    return open_checkpoint(ref.store)


@pytest.mark.parametrize("key", ["vlm_film_trained_stages", "decoder_channels", "plan_fingerprint"])
def test_metadata_that_the_header_contradicts_are_refused(commit: Any, key: str) -> None:
    """Acceptance check 9."""
    other = {"vlm_film_trained_stages": [0, 1], "decoder_channels": [64, 24, 16, 8], "plan_fingerprint": "f" * 16}
    ref = forge(commit((2, 3))[1], {key: other[key]})
    with pytest.raises(CheckpointError):
        evaluate(ref, config_of(None))


def test_metadata_and_header_that_the_tensors_contradict_are_refused(commit: Any) -> None:
    """Acceptance check 9."""
    ref = forge(commit((2, 3))[1], {"vlm_film_trained_stages": [0, 1]}, header=True)
    assert verify(ref) == []
    with pytest.raises(CheckpointError, match=r"\[0, 1\].*\[2, 3\]") as error:
        evaluate(ref, config_of(None))
    assert error.value.code == "E_EVIDENCE_CONFLICT"


def drop_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in tensors.items() if not k.startswith("film.3.")}


def drop_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in tensors.items() if k != "film.3.fc1.bias"}


def rename_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.replace("film.3.", "film.1."): v for k, v in tensors.items()}


def swap_heads(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"2": "3", "3": "2"}
    return {f"film.{names[k[5]]}{k[6:]}" if k.startswith("film.") else k: v for k, v in tensors.items()}


@pytest.mark.parametrize("change", [drop_head, drop_layer, rename_head, swap_heads])
def test_changed_heads_are_refused(commit: Any, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Acceptance check 9."""
    ref = commit((2, 3))[1]
    ref = forge(ref, tensors=change(read_tensors(ref)))
    with pytest.raises(CheckpointError):
        evaluate(ref, config_of(None))


def test_a_flipped_bit_is_refused(commit: Any) -> None:
    """Acceptance check 9."""
    ref = commit((2, 3))[1]
    data = bytearray(ref.store.get(MODEL_FILE))
    data[-5] ^= 1
    ref.store.put(MODEL_FILE, bytes(data))
    with pytest.raises(CheckpointError):
        evaluate(ref, config_of(None))


def test_an_evaluation_that_states_other_decoder_stages_is_refused(commit: Any) -> None:
    """Acceptance check 8."""
    ref = commit((2, 3))[1]
    assert evaluate(ref, config_of((3, 2))).plan.stages == (2, 3)
    for asked in ((0, 1), (2,), (1, 2, 3)):
        with pytest.raises(CheckpointError) as error:
            evaluate(ref, config_of(asked))
        assert error.value.code == "E_CFG_VS_CKPT"
        assert f"asks for FiLM decoder stages {list(asked)}" in error.value.message
        assert "trained with [2, 3]" in error.value.message
        assert "evaluate.film_active=[…]" in error.value.remedy


@pytest.mark.parametrize("key", ["film_apply_point", "head_variant", "vlm_scope"])
def test_an_evaluation_that_states_another_wiring_is_refused(commit: Any, key: str) -> None:
    other = {"film_apply_point": "post_block2", "head_variant": "relu_v0", "vlm_scope": "crop"}
    ref = commit((2, 3))[1]
    with pytest.raises(CheckpointError) as error:
        evaluate(ref, config_of(None, **{key: other[key]}))
    assert error.value.code == "E_CFG_VS_CKPT"


def test_no_route_puts_tensors_under_another_plan(commit: Any) -> None:
    """Acceptance check 11."""
    ref = commit((2, 3))[1]
    other = build_model(config_of((0, 1)))
    tensors = read_tensors(ref)
    before = {info.key: ref.store.get(info.key) for info in ref.store.list()}
    with pytest.raises(CheckpointError):
        other.load_state_dict(tensors)
    with pytest.raises(CheckpointError):
        load_state(other, tensors, where=ref.uri)
    for verb in ("resume", "evaluate"):
        with pytest.raises(CheckpointError) as error:
            admit(
                ref,
                verb,
                family="film_flow",
                stages=["film"],
                facts=facts(config_of((0, 1))),
                rules=FAMILY_CONFIG.fact_rules,
            )
        assert "[0, 1]" in str(error.value)
        assert "[2, 3]" in str(error.value)
    with pytest.raises(CheckpointError) as error:
        inherit(Parent("default", "film", ref.metadata.facts), config_of((0, 1)), STAGES["film"])
    assert error.value.code == "E_CFG_VS_CKPT"
    assert {int(s) for s in other.film} == set(other.plan.stages) == {0, 1}
    assert {info.key: ref.store.get(info.key) for info in ref.store.list()} == before

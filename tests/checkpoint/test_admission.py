"""Who may feed what: families, stages, facts by verb, and every tensor accounted for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.checkpoint.admission import account, admit, fact_faults
from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.metadata import TensorRecord
from stageline.errors import CheckpointError
from tests.checkpoint.samples import FACTS, provenance, save, snapshot, writing

F = TensorRecord(dtype="F32", shape=(2, 3))
RULES = {"vlm_film_trained_stages": {"resume": "equal", "seed": "report", "evaluate": "ablatable"}}
names = st.text(alphabet="abc.", min_size=1, max_size=4)


@given(model=st.sets(names), file=st.sets(names))
def test_without_sections_only_equal_sets_pass(model: set[str], file: set[str]) -> None:
    if model == file:
        assert account(dict.fromkeys(model, F), dict.fromkeys(file, F), where="x") == tuple(sorted(model))
        return
    with pytest.raises(CheckpointError) as caught:
        account(dict.fromkeys(model, F), dict.fromkeys(file, F), where="x")
    for name in model ^ file:
        assert f"{name}: in the {'model' if name in model else 'file'}, not in the" in caught.value.message


@pytest.mark.parametrize(
    ("verb", "found", "asked", "outcome"),
    [
        ("resume", [2, 3], [2, 3], "ok"),
        ("resume", [2, 3], (2, 3), "ok"),
        ("resume", [2, 3], [2], "fault"),
        ("seed", [0, 1], [2, 3], "note"),
        ("evaluate", [2, 3], [2], "note"),
        ("evaluate", [2, 3], [], "note"),
        ("evaluate", [2, 3], None, "note"),
        ("evaluate", [2, 3], [1], "fault"),
        ("evaluate", [2, 3], [2, 3, 1], "fault"),
    ],
)
def test_a_fact_is_compared_as_its_verb_says(verb: str, found: object, asked: object, outcome: str) -> None:
    name = "vlm_film_trained_stages"
    faults, notes = fact_faults({name: found}, {name: asked}, RULES, verb)  # type: ignore[arg-type]
    assert (bool(faults), bool(notes)) == {"ok": (False, False), "fault": (True, False), "note": (False, True)}[outcome]
    for line in faults + notes:
        assert repr(found) in line
        assert repr(asked) in line


def test_evaluation_compares_only_what_the_config_states() -> None:
    assert fact_faults(FACTS, {"use_junction": False}, {}, "evaluate") == ([], [])
    faults, _ = fact_faults(FACTS, {"use_junction": False}, {}, "resume")
    assert len(faults) == 2, "the other two facts are absent from the config"


def test_family_and_stage_must_be_legal(directory: StageDir) -> None:
    (ref,) = save(directory, 1)
    with pytest.raises(CheckpointError, match="family: checkpoint 'film_flow', config 'champ'"):
        admit(ref, "seed", family="champ", stages=["film"], facts=FACTS, rules={})
    with pytest.raises(CheckpointError, match="stage: checkpoint 'film', expected 'backbone'"):
        admit(ref, "seed", family="film_flow", stages=["backbone"], facts=FACTS, rules={})
    assert admit(ref, "seed", family="film_flow", stages=["backbone", "film"], facts=FACTS, rules={}).notes == ()


def test_seeding_reports_and_resuming_refuses_another_plan(directory: StageDir) -> None:
    (ref,) = save(directory, 1)
    facts = {**FACTS, "vlm_film_trained_stages": [0, 1]}
    admitted = admit(ref, "seed", family="film_flow", stages=["film"], facts=facts, rules=RULES)
    assert admitted.notes == ("vlm_film_trained_stages: checkpoint [2, 3], config [0, 1] (reported)",)
    with pytest.raises(
        CheckpointError, match=r"vlm_film_trained_stages: checkpoint \[2, 3\], config \[0, 1\]"
    ) as caught:
        admit(
            ref,
            "resume",
            family="film_flow",
            stages=["film"],
            facts=facts,
            rules=RULES,
            override="remove model.vlm_film_decoder_stages",
        )
    assert caught.value.remedy == "remove model.vlm_film_decoder_stages"


def test_resuming_names_the_setting_that_changed(directory: StageDir) -> None:
    (ref,) = save(directory, 1)
    settings = {**ref.metadata.settings, "trainer.learning_rate": 0.2}
    asked = {"family": "film_flow", "stages": ["film"], "facts": FACTS, "rules": {}, "stage_fingerprint": "0" * 64}
    with pytest.raises(CheckpointError, match=r"settings: trainer.learning_rate: 0.1 -> 0.2"):
        admit(ref, "resume", settings=settings, **asked)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="data or parents"):
        admit(ref, "resume", settings=ref.metadata.settings, **asked)  # type: ignore[arg-type]


def test_what_has_no_training_state_can_seed_but_not_be_resumed(directory: StageDir) -> None:
    with writing(directory) as writer:
        ref = writer.save(snapshot(0, training_tensors={}, training_state=None, ema=None))
    admit(ref, "seed", family="film_flow", stages=["film"], facts=FACTS, rules={})
    with pytest.raises(CheckpointError, match="no training state"):
        admit(ref, "resume", family="film_flow", stages=["film"], facts=FACTS, rules={})
    with pytest.raises(CheckpointError, match="no ema weights"):
        admit(ref, "seed", family="film_flow", stages=["film"], facts=FACTS, rules={}, weights="ema")


def test_tensor_names_must_prove_the_facts(directory: StageDir) -> None:
    with writing(directory, prov=provenance(facts={**FACTS, "vlm_film_trained_stages": [0, 1]})) as writer:
        ref = writer.save(snapshot(1))
    facts = ref.metadata.facts
    with pytest.raises(CheckpointError, match=r"tensor names say \[2, 3\], metadata \[0, 1\]"):
        admit(
            ref,
            "evaluate",
            family="film_flow",
            stages=["film"],
            facts=facts,
            rules=RULES,
            name_facts=lambda shapes: {
                "vlm_film_trained_stages": sorted({int(n.split(".")[1]) for n in shapes if n.startswith("film.")})
            },
        )

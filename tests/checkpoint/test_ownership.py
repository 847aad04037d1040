"""Where every tensor of a stage comes from and whose it is: one table, nothing twice, nothing left over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.checkpoint.metadata import (
    ExternalRecord,
    FileRecord,
    OwnerRecord,
    TensorRecord,
    content_of,
)
from stageline.checkpoint.ownership import Origins, find_origins, ownership, parent_faults
from stageline.errors import CheckpointError
from stageline.stage import Inheritance

F = TensorRecord(dtype="F32", shape=(2, 3))
names = st.text(alphabet="abc.", min_size=1, max_size=4)


def section(outcome: str, *patterns: str) -> Inheritance:
    return Inheritance(f"{outcome} part", outcome, "because", patterns)  # type: ignore[arg-type]


def records(*found: str) -> dict[str, TensorRecord]:
    return dict.fromkeys(found, F)


def from_one(model: object, file: object, sections: list[Inheritance]) -> Origins:
    """The origins where there is one parent."""
    own, given = records(*model), records(*file)  # type: ignore[misc]
    return find_origins(own, {"default": given}, {"default": sections}, {}, where="x", partly=False)


@given(
    model=st.sets(names),
    file=st.sets(names),
    outcomes=st.dictionaries(names, st.sampled_from(["load", "fresh", "drop"])),
)
def test_every_tensor_is_explained_or_the_whole_is_refused(
    model: set[str], file: set[str], outcomes: dict[str, str]
) -> None:
    sections = [section(outcome, name) for name, outcome in outcomes.items()]
    good = {
        "load": lambda name: name in model and name in file,
        "fresh": lambda _: True,
        "drop": lambda name: name not in model,
    }
    try:
        found = from_one(model, file, sections)
    except CheckpointError:
        explained = all(name in outcomes and good[outcomes[name]](name) for name in model | file)
        assert not explained or not any(outcomes[name] == "load" for name in model & file)
    else:
        assert sorted([*found.loaded, *found.fresh]) == sorted(model)
        assert set(found.dropped["default"]) == file - set(found.loaded)
        assert set(found.loaded) == {name for name in model | file if outcomes[name] == "load"}


def test_new_heads_start_fresh_and_old_ones_are_dropped_by_declaration() -> None:
    sections = [section("load", "backbone.*", "film.2.*"), section("fresh", "film.3.*"), section("drop", "film.0.*")]
    found = from_one(["backbone.w", "film.2.w", "film.3.w"], ["backbone.w", "film.2.w", "film.0.w"], sections)
    assert found.counts("default") == {"loaded": 2, "fresh": 1, "dropped": 1, "external": 0}
    assert (found.fresh, found.dropped["default"]) == (("film.3.w",), ("film.0.w",))


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        ([section("load", "a")], "b: belongs to no section"),
        ([section("load", "a", "b"), section("fresh", "b")], "b: load part says load, fresh part says fresh"),
        ([section("load", "a"), section("drop", "b")], "b: to be dropped, but the model has it"),
        ([section("load", "a"), section("external", "b")], "b: external weights, but the file holds them"),
        ([section("fresh", "a", "b")], "parent 'default' gives this stage nothing"),
    ],
)
def test_contradictory_declarations_are_refused(sections: list[Inheritance], fault: str) -> None:
    with pytest.raises(CheckpointError, match=fault):
        from_one("ab", "ab", sections)


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (TensorRecord(dtype="BF16", shape=(2, 3)), "dtype BF16 in the file, F32 in the model"),
        (TensorRecord(dtype="F32", shape=(3, 2)), r"shape \[3, 2\] in the file, \[2, 3\] in the model"),
        (TensorRecord(dtype="F32", shape=(2, 3, 1)), "shape"),
    ],
)
def test_nothing_is_cast_or_reshaped_on_seeding_either(other: TensorRecord, fault: str) -> None:
    with pytest.raises(CheckpointError, match=fault):
        find_origins({"a": F}, {"p": {"a": other}}, {"p": [section("load", "*")]}, {}, where="x", partly=False)


BODY, HEAD = section("load", "body.*"), section("load", "head.*")


def test_two_roles_load_every_tensor_exactly_once() -> None:
    parents = {"sparse": records("body.w", "head.w"), "motion": records("head.w", "rest.w")}
    sections = {"sparse": [BODY, section("drop", "head.*")], "motion": [HEAD, section("drop", "rest.*")]}
    model = records("body.w", "head.w", "encoder.w")
    externals = {"encoder": ("encoder.*",)}
    found = find_origins(model, parents, sections, externals, where="x", partly=False)
    assert found.loaded == {"body.w": "sparse", "head.w": "motion"}
    assert found.external == {"encoder.w": "encoder"}
    assert found.dropped == {"sparse": ("head.w",), "motion": ("rest.w",)}


@pytest.mark.parametrize(
    ("sparse", "motion", "fault"),
    [
        ([BODY, HEAD], [HEAD], "head.w: would be loaded from sparse and motion"),
        ([BODY, section("fresh", "head.*")], [HEAD], "head.w: would be loaded from motion and start fresh"),
        ([BODY, section("drop", "head.*")], [section("drop", "head.*")], "head.w: to be dropped, but the model has it"),
        ([BODY, HEAD], [section("drop", "head.*")], "parent 'motion' gives this stage nothing"),
        ([BODY], [HEAD], "head.w: belongs to no section"),
    ],
)
def test_roles_that_contradict_each_other_are_refused(
    sparse: list[Inheritance], motion: list[Inheritance], fault: str
) -> None:
    parents = {"sparse": records("body.w", "head.w"), "motion": records("head.w")}
    with pytest.raises(CheckpointError, match=fault):
        find_origins(
            records("body.w", "head.w"), parents, {"sparse": sparse, "motion": motion}, {}, where="x", partly=False
        )


def test_what_an_absent_optional_parent_would_give_starts_fresh() -> None:
    model, parents = records("body.w", "head.w"), {"sparse": records("body.w")}
    found = find_origins(model, parents, {"sparse": [BODY]}, {}, where="x", partly=True)
    assert found.fresh == ("head.w",)
    with pytest.raises(CheckpointError, match=r"head\.w: belongs to no section"):
        find_origins(model, parents, {"sparse": [BODY]}, {}, where="x", partly=False)


OUTCOMES = st.sampled_from(["load", "load", "fresh", "drop", "external"])


@given(
    files=st.tuples(*[st.sets(st.sampled_from("abcd"), min_size=1)] * 2),
    declared=st.tuples(*[st.dictionaries(st.sampled_from("abcd"), OUTCOMES)] * 2),
    model=st.sets(st.sampled_from("abcd")),
    partly=st.booleans(),
)
def test_parents_are_refused_without_a_model_only_where_every_model_refuses_them(
    files: tuple[set[str], set[str]],
    declared: tuple[dict[str, str], dict[str, str]],
    model: set[str],
    partly: bool,
) -> None:
    """And where they are not, there is a model that takes them: the one of what they give."""
    parents = {role: records(*file) for role, file in zip("pq", files, strict=True)}
    sections = {
        role: [section(outcome, name) for name, outcome in outcomes.items()]
        for role, outcomes in zip("pq", declared, strict=True)
    }
    faults = parent_faults(parents, sections)
    empty = [fault for fault in faults if "has no tensor of it" in fault]
    unfound = [(r, n) for r, said in zip("pq", declared, strict=True) for n in said if said[n] == "load"]
    assert len(empty) == sum(name not in parents[role] for role, name in unfound)
    try:
        find_origins(records(*model), parents, sections, {}, where="x", partly=partly)
    except CheckpointError:
        pass
    else:
        assert faults == empty
    if not faults:
        given_names = {name for role, name in unfound if name in parents[role]}
        found = find_origins(records(*given_names), parents, sections, {}, where="x", partly=True)
        assert set(found.loaded) == given_names


def test_whose_is_what() -> None:
    """A trained external is own; a frozen one is not; a frozen parent inside the root is referenced, outside own."""
    model = records("body.w", "body.mean", "head.w", "head.scale", "enc.w", "enc.adapter", "new")
    sections = {"default": [BODY, HEAD]}
    origins = Origins(
        loaded=dict.fromkeys(["body.w", "body.mean", "head.w", "head.scale"], "default"),
        fresh=("new",),
        external={"enc.w": "clip", "enc.adapter": "clip"},
    )
    trained, buffers = ["head.w", "enc.adapter"], ["body.mean", "head.scale"]
    found = ownership(model, trained, buffers, origins, sections, ["default"])
    assert found.own == ("enc.adapter", "head.scale", "head.w", "new")
    assert found.referenced == {"body.w": "default", "body.mean": "default"}
    assert found.external == {"enc.w": "clip"}
    outside = ownership(model, trained, buffers, origins, sections, [])
    assert outside.referenced == {}
    assert outside.own == tuple(sorted(set(model) - {"enc.w"}))


@given(
    model=st.sets(names, min_size=1),
    data=st.data(),
)
def test_every_tensor_is_exactly_one_of_three(model: set[str], data: st.DataObject) -> None:
    some = st.sets(st.sampled_from(sorted(model)))
    trained, buffers, loaded, external = (data.draw(some) for _ in range(4))
    origins = Origins(dict.fromkeys(loaded, "p"), (), dict.fromkeys(external - loaded, "e"))
    found = ownership(
        records(*model), trained, buffers - trained, origins, {"p": [section("load", "*")]}, data.draw(some) and ["p"]
    )
    assert sorted([*found.own, *found.referenced, *found.external]) == sorted(model)
    assert trained <= set(found.own)


def test_content_tells_whose_weights_they_are_and_not_where_they_lie() -> None:
    files = {"model.safetensors": FileRecord(bytes=1, sha256="1" * 64)}
    owner = OwnerRecord(uri="runs/a/b", digest="2" * 64, content="3" * 64, weights="ema", tensors={"x": F})
    other = ExternalRecord(name="clip", digest="4" * 64, tensors={"y": F})
    plain, whole = content_of(files), content_of(files, {"p": owner}, {"clip": other})
    assert plain == content_of(files, {}, {})
    changed = [
        content_of(files, {"p": owner.model_copy(update={key: value})}, {"clip": other})
        for key, value in {"content": "5" * 64, "weights": "raw", "tensors": {"x": F, "z": F}}.items()
    ]
    changed.append(content_of(files, {"p": owner}, {"clip": other.model_copy(update={"digest": "6" * 64})}))
    assert len({plain, whole, *changed}) == 6
    moved = owner.model_copy(update={"uri": "runs/z/b", "digest": "7" * 64})
    assert content_of(files, {"p": moved}, {"clip": other}) == whole
    derived = {**files, "model_for_others.safetensors": FileRecord(bytes=1, sha256="8" * 64, kind="derived")}
    assert content_of(derived) == plain


def test_what_a_parent_holds_in_part_is_loaded_and_the_rest_external() -> None:
    """`load or external`: the parent's own blocks come from its file, what it never trained from the external."""
    model, file = records("tower.0", "tower.1", "head"), records("tower.1", "head")
    sections = {"default": [section("load or external", "tower.*"), section("load", "head")]}
    found = find_origins(model, {"default": file}, sections, {"t": ("tower.*",)}, where="x", partly=False)
    assert found.loaded == {"tower.1": "default", "head": "default"}
    assert found.external == {"tower.0": "t"}
    with pytest.raises(CheckpointError, match=r"tower\.0: external weights, and no external of the stage supplies it"):
        find_origins(model, {"default": file}, sections, {}, where="x", partly=False)

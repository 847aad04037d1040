"""What a legacy file says about its decoder stages, row by row of the cross-examination, on real files.

Acceptance check 6 (three levels, each alone, every subset) and check 8 (conflicts: outcome, both lists in the message,
the file's bytes untouched). The same rows without files stand in `test_restore`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stageline.errors import CheckpointError
from stageline.families.film_flow.imports.legacy import import_legacy
from stageline.families.film_flow.model.network import FilmFlowModel
from tests.families.film_flow.model.subsets import every_subset

DISTINCT, EQUAL = (1, 2, 3, 4), (1, 2, 2, 4)
"""Channel factors: with the second, heads 1 and 2 are equally wide."""
Build = Callable[..., FilmFlowModel]
Write = Callable[..., Path]


@pytest.mark.parametrize("stages", every_subset())
def test_each_level_of_a_file_alone_restores_every_subset(
    legacy_model: Build, write_legacy: Write, stages: tuple[int, ...]
) -> None:
    """Check 6, which `test_restore` proves of every subset without files; heads alone, with null hyper-parameters, are
    those of `test_legacy`'s exact import."""
    model, said = legacy_model(stages), list(stages)
    for name, top, hyper in (
        ("metadata", {"vlm_film_trained_stages": said}, {"vlm_film_decoder_stages": None}),
        ("hparams", {}, {"vlm_film_decoder_stages": said}),
    ):
        path = write_legacy(model, top, **hyper)
        before = path.read_bytes()
        report = import_legacy(path, {})[2]
        assert (report["film_stages"], report["stages_origin"]) == (said, name)
        assert path.read_bytes() == before


class Row(NamedTuple):
    """heads: of the file.  l1, l2: what metadata and hyper-parameters say, None is unknown.  use: `use_vlm_film`.
    code: of the refusal, "" where `taken` is accepted.  shown: lists that the message or the warning must name.
    choices: what `import.film_stages` may settle it with."""

    heads: tuple[int, ...]
    mult: tuple[int, ...]
    l1: list[int] | None
    l2: list[int] | None
    code: str = ""
    taken: tuple[list[int], str] = ([], "")
    shown: tuple[str, ...] = ()
    choices: tuple[list[int], ...] = ()
    use: bool = True


CONFLICT = "E_EVIDENCE_CONFLICT"
ROWS = {
    "all known levels are equal": Row((2, 3), DISTINCT, [2, 3], [2, 3], taken=([2, 3], "metadata")),
    "metadata is one of the candidates": Row((1,), EQUAL, [1], None, taken=([1], "metadata")),
    "hyper-parameters are one of the candidates": Row((1,), EQUAL, None, [2], taken=([2], "hparams")),
    "metadata fit the heads, hyper-parameters do not": Row(
        (2, 3), DISTINCT, [2, 3], [0, 1], taken=([2, 3], "metadata"), shown=("[2, 3]", "[0, 1]")
    ),
    "metadata and hyper-parameters both fit": Row(
        (0, 1), EQUAL, [0, 1], [0, 2], CONFLICT, shown=("[0, 1]", "[0, 2]"), choices=([0, 1], [0, 2])
    ),
    "metadata contradict the heads": Row(
        (2, 3), DISTINCT, [0, 1], None, CONFLICT, shown=("[0, 1]", "[2, 3]"), choices=([2, 3],)
    ),
    "metadata contradict heads and hyper-parameters": Row(
        (2, 3), DISTINCT, [0, 1], [2, 3], CONFLICT, shown=("[0, 1]", "[2, 3]"), choices=([2, 3],)
    ),
    "hyper-parameters contradict the heads": Row(
        (2, 3), DISTINCT, None, [0, 1], CONFLICT, shown=("[0, 1]", "[2, 3]"), choices=([2, 3],)
    ),
    "nothing is said and the heads fit two choices": Row(
        (1,), EQUAL, None, None, "E_AMBIGUOUS", shown=("[1]", "[2]"), choices=([1], [2])
    ),
    "no heads, FiLM off": Row((), DISTINCT, None, None, taken=([], "inferred"), use=False),
    "no heads, but FiLM is claimed": Row((), DISTINCT, None, [0, 1], "E_NO_EVIDENCE", shown=("[0, 1]", "heads: none")),
    "heads, but FiLM is denied": Row(
        (2, 3), DISTINCT, None, None, CONFLICT, shown=("use_vlm_film: false", "[2, 3]"), use=False, choices=([2, 3],)
    ),
    "a decoder stage that does not exist": Row(
        (2, 3), DISTINCT, [2, 7], None, "E_RANGE", shown=("decoder stage 7", "0..3"), choices=([2, 3],)
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_conflicts_in_a_file_end_as_stated_and_leave_it_untouched(
    legacy_model: Build, write_legacy: Write, name: str
) -> None:
    """Check 8: the rows of the cross-examination."""
    row = ROWS[name]
    top = {} if row.l1 is None else {"vlm_film_trained_stages": row.l1}
    path = write_legacy(legacy_model(row.heads, row.mult), top, vlm_film_decoder_stages=row.l2, use_vlm_film=row.use)
    before = path.read_bytes()
    if not row.code:
        report = import_legacy(path, {})[2]
        assert (report["film_stages"], report["stages_origin"]) == row.taken
        said = "\n".join(report["warnings"])
        assert bool(said) == bool(row.shown)
    else:
        with pytest.raises(CheckpointError) as error:
            import_legacy(path, {})
        assert error.value.code == row.code
        said = str(error.value)
        assert str(path) in said
    assert all(part in said for part in row.shown), said
    for choice in row.choices:
        report = import_legacy(path, {"import": {"film_stages": choice}})[2]
        assert (report["film_stages"], report["stages_origin"]) == (choice, "override")
    if row.code:
        foreign: Any = next([s] for s in range(4) if [s] not in row.choices)
        with pytest.raises(CheckpointError):
            import_legacy(path, {"import": {"film_stages": foreign}})
    assert path.read_bytes() == before

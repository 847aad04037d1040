"""One stage through the verb `train`: run, reuse, seed, resume, and what is refused."""

from __future__ import annotations


def test_a_stage_runs_and_is_reused(train, tmp_path):
    first = train("base")
    assert first.action == "run" and first.step == 10
    again = train("base")
    assert again.action == "reuse" and again.reference == first.reference

"""Tables for people."""

from __future__ import annotations

from typing import get_args

import pytest

from stageline.cli.tables import show_plan
from stageline.plan import Plan
from stageline.work.record import Action, Item


@pytest.mark.parametrize("action", get_args(Action))
def test_a_plan_shows_whatever_an_item_can_be(action: Action, capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(Plan("film_flow", "a", "runs/a", (Item("film", "stage", action, ("because",)),)))
    shown = capsys.readouterr().out
    assert action in shown
    assert "because" in shown

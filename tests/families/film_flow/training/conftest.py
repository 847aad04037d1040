"""Prepared data and tasks of small film_flow configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stageline.data.prepared import PreparedData, open_prepared
from stageline.families.film_flow.config.stages import STAGES
from stageline.families.film_flow.task import FilmFlowTask, build_task
from stageline.verbs.prepare import prepare_data

from .small import at_stage, make_config


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Prepared data of the small config."""
    return open_prepared(prepare_data(make_config(tmp_path_factory.mktemp("prepared"))).reference)


@pytest.fixture
def make_task(prepared: PreparedData, tmp_path: Path) -> Callable[..., FilmFlowTask]:
    """make_task(stage, **dotted keys) over the small data."""

    def make(stage: str = "film", **dotted: Any) -> FilmFlowTask:
        return build_task(at_stage(make_config(tmp_path, **dotted), stage), STAGES[stage], prepared)

    return make

"""The compiled pipeline is the golden beside its source, and its steps carry no code of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stageline.errors import MissingPartError
from stageline.run.pipelines import compile_pipeline, compiled_pipeline

GOLDEN = Path(__file__).resolve().parents[2] / "pipelines" / "film_flow.yaml"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "film_flow.yaml"
    compile_pipeline("film_flow", path)
    return path


def test_compiling_again_gives_the_golden(compiled: Path) -> None:
    assert compiled.read_text() == GOLDEN.read_text(), "`stageline pipeline compile -o pipelines/film_flow.yaml`"


def test_the_installed_pipeline_is_the_golden() -> None:
    assert compiled_pipeline("film_flow").read_text() == GOLDEN.read_text()


def test_a_pipeline_that_is_not_there_names_what_to_install() -> None:
    with pytest.raises(MissingPartError, match="compiled pipeline of 'no_family'"):
        compiled_pipeline("no_family")


def test_steps_run_in_order_and_pass_references_as_strings() -> None:
    plain = yaml.safe_load(GOLDEN.read_text())
    tasks = plain["root"]["dag"]["tasks"]
    assert set(tasks) == {"prepare-data", "train-stage", "train-stage-2", "evaluate", "report"}
    assert tasks["train-stage-2"]["dependentTasks"] == ["prepare-data", "train-stage"]
    assert tasks["evaluate"]["dependentTasks"] == ["prepare-data", "train-stage", "train-stage-2"]
    assert tasks["report"]["dependentTasks"] == ["evaluate"]
    for task in tasks.values():
        assert task["cachingOptions"] == {}, "kfp's cache key is not content"
    for component in plain["components"].values():
        assert component["outputDefinitions"]["parameters"] == {"reference": {"parameterType": "STRING"}}


def test_artifacts_are_typed() -> None:
    components = yaml.safe_load(GOLDEN.read_text())["components"]
    found = {
        name: sorted(a["artifactType"]["schemaTitle"] for a in c["outputDefinitions"]["artifacts"].values())
        for name, c in components.items()
    }
    assert found == {
        "comp-prepare-data": ["system.Dataset"],
        "comp-train-stage": ["system.Metrics", "system.Model"],
        "comp-train-stage-2": ["system.Metrics", "system.Model"],
        "comp-evaluate": ["system.Metrics"],
        "comp-report": ["system.HTML"],
    }


def test_a_body_is_one_call_into_the_library_and_installs_nothing() -> None:
    executors = yaml.safe_load(GOLDEN.read_text())["deploymentSpec"]["executors"]
    for name, executor in executors.items():
        source = executor["container"]["command"][3]
        body = source[source.index('"""', source.index('"""') + 3) + 3 :]
        lines = [line.strip() for line in body.splitlines() if line.strip()]
        assert lines[0] == "from stageline.execute import steps", name
        assert len(lines) == 2, name
        assert lines[1].startswith("return steps."), name
        assert "pip install" not in str(executor), name

"""The items of a run as jobs: by reference where the store knows their inputs, standing for themselves where not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stageline.config import RunConfig
from stageline.errors import ConfigError, PlanError
from stageline.jobs.cluster.render.pytorchjob import render_job
from stageline.pipeline.items import DataMissingError, free_job, item_names, place_config, resolved_job
from stageline.store import open_store
from stageline.work.decision import decide
from stageline.work.given import Given

if TYPE_CHECKING:
    from conftest import Lab


def placed(lab: Lab, *overrides: str) -> RunConfig:
    """A run whose root is a claim's folder that is mounted here too."""
    settings = ("cluster.image=a/b:1", "cluster.storage.claim=c", f"cluster.storage.mount_path={lab.root}")
    return place_config(lab.config(*settings, *overrides), {})


def test_a_run_has_its_stages_between_preparation_and_evaluation(lab: Lab) -> None:
    assert item_names(placed(lab)) == ("prepare_data", "backbone", "film", "evaluate")
    assert item_names(placed(lab, "stages=[backbone]")) == ("prepare_data", "backbone", "evaluate")
    with pytest.raises(ConfigError, match="did you mean 'backbone'"):
        free_job(placed(lab), "backbon")


def test_what_is_missing_is_asked_for_in_order(lab: Lab) -> None:
    config, root = placed(lab), open_store(lab.root)
    assert not resolved_job(config, "prepare_data", root).result.finished()
    with pytest.raises(DataMissingError, match="are not prepared"):
        resolved_job(config, "backbone", root)
    lab.prepare(config)
    assert resolved_job(config, "prepare_data", root).reference
    assert resolved_job(config, "backbone", root).reference == ""
    with pytest.raises(PlanError, match="stage 'film' cannot start yet: parent default"):
        resolved_job(config, "film", root)
    with pytest.raises(PlanError, match="nothing to evaluate yet"):
        resolved_job(config, "evaluate", root)


def test_a_stage_names_data_and_parents_by_reference_and_its_end_by_the_store(lab: Lab) -> None:
    config, root = placed(lab, "stage_overrides.film.trainer.nodes=2"), open_store(lab.root)
    data = lab.prepare(config).reference
    backbone = lab.commit(config, "backbone")
    prospect = resolved_job(config, "film", root)
    assert prospect.job.arguments == ("train", "film", f"--data={data}", f"--parent=default={backbone.reference}")
    assert (prospect.job.nodes, prospect.job.run, prospect.job.item) == (2, "lab", "film")
    assert (prospect.result.finished(), prospect.result.progress()) == (False, -1)
    wanted = decide(config, "film", root, Given(str(data), {"default": str(backbone.reference)})).fingerprint
    assert prospect.job.fingerprint == wanted
    lab.commit(config, "film", parents={"default": backbone}, step=4, final=False)
    assert (prospect.result.finished(), prospect.result.progress()) == (False, 4)
    film = lab.commit(config, "film", parents={"default": backbone})
    assert prospect.result.finished()
    done = resolved_job(config, "film", root)
    assert done.reference == str(film.reference)
    assert done.job.name == prospect.job.name == "lab-film"
    assert resolved_job(config, "evaluate", root).job.arguments[2] == f"--checkpoint={film.reference}"


def test_a_free_job_depends_on_no_store(lab: Lab) -> None:
    config = placed(lab)
    before = {item: free_job(config, item) for item in item_names(config)}
    lab.train_all(config)
    assert {item: free_job(config, item) for item in item_names(config)} == before
    assert before["film"][0].arguments == ("train", "film")
    assert (
        before["prepare_data"][0].fingerprint
        == resolved_job(config, "prepare_data", open_store(lab.root)).job.fingerprint
    )
    for job, cluster in before.values():
        render_job(job, cluster)


def test_a_blocked_stage_is_not_submitted(lab: Lab) -> None:
    from stageline.checkpoint.identity import claim_run

    config = placed(lab)
    lab.prepare(config)
    claim_run(open_store(lab.root), config, "test")
    with pytest.raises(PlanError, match="another identity"):
        resolved_job(placed(lab, "seed=5"), "backbone", open_store(lab.root))


def test_a_config_starts_from_its_namespaces_defaults_and_lies_in_the_claim(lab: Lab) -> None:
    defaults = {"root": "runs", "cluster": {"image": "a/b:1", "storage": {"claim": "c"}, "queue": "q"}}
    plain = lab.config("cluster.queue=mine").model_copy(update={"root": "."})
    config = place_config(plain, defaults)
    assert (config.root, config.cluster.image, config.cluster.queue) == ("/stageline", "a/b:1", "mine")
    with pytest.raises(ConfigError, match=r"cluster.image is empty"):
        place_config(plain, {})

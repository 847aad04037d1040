"""What a panorama costs: the figures that the documents give, and what must follow from the number of views."""

from __future__ import annotations

import pytest
from room import config

from stageline.contract import StepRate, StepWork
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES
from stageline.families.panorama_vlm.cost import cost_of
from stageline.stage import stage_config

OVERLAPS = {5: 0.0, 7: 0.25, 9: 0.5}
NONE = "models.resampler_config.pool=none"
# Worked out by hand for SigLIP2-so400m at 256 pixels, BiMamba without pooling and Qwen3-0.6B, in units of 1e12.
WHOLE = {5: (1.10, 0.082, 1.42, 4.19, 3.09), 7: (1.53, 0.115, 2.06, 6.00, 4.47), 9: (1.97, 0.147, 2.76, 7.94, 5.97)}
POOLED = {5: (0.38, 2.11, 1.01), 7: (0.51, 2.90, 1.36), 9: (0.64, 3.69, 1.72)}


@pytest.mark.parametrize("views", OVERLAPS)
def test_the_table_of_views(views: int) -> None:
    whole = cost_of(config(f"image_processing.overlap_ratio={OVERLAPS[views]}", NONE))
    parts = (whole.tower, whole.resampler, whole.language, whole.training(), whole.training(cached=True))
    assert [part / 1e12 for part in parts] == pytest.approx(WHOLE[views], rel=0.02)
    assert whole.image_tokens == 256 * views
    pooled = cost_of(config(f"image_processing.overlap_ratio={OVERLAPS[views]}"))
    parts = (pooled.language, pooled.training(), pooled.training(cached=True))
    assert [part / 1e12 for part in parts] == pytest.approx(POOLED[views], rel=0.02)


@pytest.mark.parametrize("kind", ["mlp", "qformer", "perceiver", "bimamba"])
def test_a_resampler_inside_views_costs_in_proportion_to_them(kind: str) -> None:
    nine, five = (
        cost_of(config(f"models.resampler_type={kind}", f"image_processing.overlap_ratio={o}")) for o in (0.5, 0.0)
    )
    assert nine.tower / five.tower == pytest.approx(9 / 5)
    assert nine.resampler / five.resampler == pytest.approx(9 / 5)
    assert nine.language / five.language > 9 * 64 / (5 * 64 + 80) / 1.3


@pytest.mark.parametrize("kind", ["qformer", "perceiver"])
def test_queries_of_the_whole_panorama_leave_the_language_model_its_length(kind: str) -> None:
    scope = (f"models.resampler_type={kind}", "models.resampler_config.scope=panorama")
    nine, five = (cost_of(config(*scope, f"image_processing.overlap_ratio={o}")) for o in (0.5, 0.0))
    assert nine.language == five.language
    assert nine.image_tokens == five.image_tokens == 128


def test_a_step_costs_its_samples_and_kept_features_spare_the_tower() -> None:
    made = config()
    whole = cost_of(made)
    step = {
        name: FAMILY_CONFIG.step_work(stage_config(made, STAGES[name]), STAGES[name])
        for name in ("vision", "resampler")
    }
    assert step["resampler"] == StepWork(4, whole.training(cached=True))
    forgets = stage_config(config("runtime.cache_vision_features=false"), STAGES["resampler"])
    assert FAMILY_CONFIG.step_work(forgets, STAGES["resampler"]) == StepWork(4, whole.training())
    # Two of 27 blocks get gradients, twice a forward pass each; the untrained tower is passed once more.
    assert step["vision"] is not None
    assert step["vision"].amount == pytest.approx(8 * whole.tower * (2 + 2 * 2 / 27))


def test_a_rate_says_nothing_of_steps_far_larger_than_those_measured() -> None:
    rate = StepRate(0.5, 1e-3, 100.0, "a device")
    assert rate.seconds(StepWork(2, 400.0)) == pytest.approx(2 * (0.5 + 0.4))
    assert rate.seconds(StepWork(2, 401.0)) is None


def test_the_plan_tells_the_cost_of_stages_that_read_text() -> None:
    made = config()
    told = [line for line in FAMILY_CONFIG.summary(made, STAGES["resampler"]) if line.startswith("cost of a panorama")]
    assert told == [
        "cost of a panorama with 80 tokens of text: tower 1.97 TFLOP, resampler 144 GFLOP, language model 637 GFLOP; "
        "a training sample 3.68 TFLOP, with cached features 1.71 TFLOP"
    ]
    assert not any("cost" in line for line in FAMILY_CONFIG.summary(made, STAGES["vision"]))

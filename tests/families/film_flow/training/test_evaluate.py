"""Evaluation and prediction of a small model: counts, modes, provenance, pictures, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stageline.contract import Evaluation
from stageline.data.prepared import PreparedData
from stageline.errors import ConfigError, DataError
from stageline.families.film_flow import evaluate as evaluation_module
from stageline.families.film_flow.evaluate import evaluate
from stageline.families.film_flow.measures.modes import deranged
from stageline.families.film_flow.predict import predict
from stageline.families.film_flow.sampling import predict_probability
from stageline.families.film_flow.words import WORDS

from .small import Kept, at_stage, kicked_model, make_config


def nothing(*_: Any) -> None:
    """No progress."""


def root_of(prepared: PreparedData) -> Path:
    return Path(prepared.uri).parents[3]


def measure(config: Any, model: Any, prepared: PreparedData, finished: Kept | None = None) -> Evaluation:
    """The evaluation with the rows and pictures it emitted, after those of an earlier attempt."""
    kept, before = Kept(), finished or Kept()
    found = evaluate(config, model, prepared, before.rows, kept, nothing)
    rows = tuple({**before.rows, **kept.rows}.values())
    return replace(found, rows=rows, panels={**before.pictures, **kept.pictures, **found.panels})


MADE: dict[str, Evaluation] = {}
"""What was evaluated without an earlier attempt, by its settings: several tests look at the same."""


def run(prepared: PreparedData, stage: str = "film", finished: Kept | None = None, **keys: Any) -> Evaluation:
    name = json.dumps([prepared.uri, stage, keys], sort_keys=True)
    if finished is None and name in MADE:
        return MADE[name]
    config = make_config(root_of(prepared), model__timesteps=1, **keys)
    found = measure(at_stage(config, stage), kicked_model(config, stage), prepared, finished)
    return found if finished else MADE.setdefault(name, found)


def test_all_modes_stand_side_by_side_with_counts(prepared: PreparedData) -> None:
    found = run(prepared)
    for name in ("dice", "cldice", "pooled_dice", "betti0_error", "betti1_error", "junction_f1"):
        for suffix in ("", "_off", "_shuffle", "_swapped"):
            assert math.isfinite(found.metrics[name + suffix])
            assert found.num_samples[name + suffix] == 6
    assert found.num_samples["head_junction_f1"] == 3
    assert len(found.rows) == 24
    assert {row["mode"] for row in found.rows} == {"on", "off", "shuffle", "swapped"}
    means = [row["dice"] for row in found.rows if row["mode"] == "on"]
    assert found.metrics["dice"] == pytest.approx(sum(means) / 6)
    assert "distractors" not in found.metrics


def test_provenance_is_complete(prepared: PreparedData) -> None:
    keys = {"evaluate__film_active": [3], "evaluate__compare_film": False}
    said = run(prepared, model__num_ensemble=2, **keys).provenance
    assert (said["film_stages"], said["film_stages_active"], said["ablation"]) == ([2, 3], [3], True)
    assert (said["film_mode"], said["film_strength"], said["nfe"], said["ensemble"]) == ("on", 1.0, 2, 2)
    assert said["gate"] == {"stages": [2, 3], "source": "head", "value": 1.0, "strength": 1.0}
    assert len(said["plan_fingerprint"]) == 16
    assert said["labels"].startswith("exact")
    assert said["film_stages_origin"] == "metadata"


@pytest.mark.parametrize("mode", ["off", "shuffle"])
def test_another_mode_is_measured_alone_and_equals_its_column(prepared: PreparedData, mode: str) -> None:
    both, alone = run(prepared), run(prepared, evaluate__film_mode=mode)
    assert alone.provenance["film_mode"] == mode
    assert alone.metrics["dice"] == pytest.approx(both.metrics[f"dice_{mode}"], abs=1e-12)
    assert not [name for name in alone.metrics if name.endswith(("_off", "_shuffle", "_swapped"))]


def test_results_do_not_depend_on_the_batch_size(prepared: PreparedData) -> None:
    one, many = run(prepared, evaluate__batch_size=1), run(prepared, evaluate__batch_size=4)
    for a, b in zip(
        sorted(one.rows, key=lambda r: (r["mode"], r["id"])),
        sorted(many.rows, key=lambda r: (r["mode"], r["id"])),
        strict=True,
    ):
        assert a["dice"] == pytest.approx(b["dice"], abs=0.02)
        assert (a["id"], a["prompt"]) == (b["id"], b["prompt"])


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 5, 13])
def test_an_interrupted_evaluation_is_continued_to_the_same_result(
    prepared: PreparedData, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"evaluate__batch_size": 2, "evaluate__num_panels": 3, "model__num_ensemble": 2}
    whole = run(prepared, **keys)
    config = make_config(root_of(prepared), model__timesteps=1, **keys)
    kept = Kept(stop_at=rows)
    with pytest.raises(KeyboardInterrupt):
        evaluate(at_stage(config, "film"), kicked_model(config), prepared, {}, kept, nothing)
    assert len(kept.rows) == rows
    measured: list[str] = []

    def noted(model: Any, image: Any, condition: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        measured.extend(ids)
        return predict_probability(model, image, condition, ids, *args, **kwargs)

    monkeypatch.setattr(evaluation_module, "predict_probability", noted)
    rest = run(prepared, finished=kept, **keys)
    assert rest.rows == whole.rows
    assert (rest.metrics, rest.num_samples, rest.provenance) == (whole.metrics, whole.num_samples, whole.provenance)
    assert rest.panels.keys() == whole.panels.keys()
    assert all(np.array_equal(rest.panels[name], pixels) for name, pixels in whole.panels.items())
    drawn_last = {name.rpartition("-")[2] for name in whole.panels} - {"000", "001", "002"}
    assert len(measured) == 24 - 8 * (rows // 8) + 4 * len(drawn_last), (
        "batches that were finished are not predicted again, but for pictures of the best, the median and the worst"
    )


def test_a_backbone_is_measured_without_film(prepared: PreparedData) -> None:
    found = run(prepared, "backbone")
    assert found.provenance["film_stages"] == []
    assert "dice_off" not in found.metrics
    assert "condition_cosine" not in found.metrics


def test_collapsed_conditions_are_called_so(prepared: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(prepared).provenance["warnings"] == []
    monkeypatch.setattr(evaluation_module, "COLLAPSE_COSINE", -1.0)
    (warning,) = run(prepared, finished=Kept(), evaluate__compare_film=False).provenance["warnings"]
    assert "collapsed" in warning


def test_equal_conditions_have_a_likeness_of_one(prepared: PreparedData) -> None:
    keys = {"model__timesteps": 1, "evaluate__compare_film": False}
    config = at_stage(make_config(root_of(prepared), **keys), "film")
    model = kicked_model(make_config(root_of(prepared)))
    assert model.cond is not None
    with torch.no_grad():
        for name, parameter in model.cond.named_parameters():
            if name.endswith("proj.weight"):
                parameter.zero_()
            if name.endswith("proj.bias"):
                parameter.copy_(torch.linspace(-1, 1, len(parameter)))
    found = measure(config, model, prepared)
    assert found.metrics["condition_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert "collapsed" in found.provenance["warnings"][0]


def test_pictures_show_what_was_asked_for(prepared: PreparedData) -> None:
    """Of the first cases, and of the best, the median and the worst: each thing by itself, in the family's order."""
    found = run(prepared, evaluate__num_panels=2)
    on = [row for row in found.rows if row["mode"] == "on"]
    order = sorted(range(6), key=lambda n: -on[n]["dice"])
    places = {0, 1, order[0], order[3], order[5]}
    modes = ("prediction", "prediction_off", "prediction_shuffle", "prediction_swapped")
    shown = ("image", "truth", "outlines", *modes, "probability", "junctions")
    assert set(found.panels) == {f"{what}-{place:03d}" for what in shown for place in places}
    for name, pixels in found.panels.items():
        assert pixels.dtype == np.uint8
        what = name.rpartition("-")[0]
        assert what.split("_")[0] in WORDS.pictures
        assert pixels.ndim == (2 if what in ("image", "truth", "probability") else 3)
    for place in places:
        truth = found.panels[f"truth-{place:03d}"] > 0
        red, green = (found.panels[f"prediction-{place:03d}"][..., channel].astype(int) for channel in (0, 1))
        assert np.array_equal(truth, red == 255), "found or missed: white or orange"
        predicted = (green == 255) | (green == 130)
        dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
        assert dice == pytest.approx(on[place]["dice"], abs=0.02)
    assert run(prepared).panels == {}


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"evaluate__film_active": [0]}, "no trained head"),
        ({"evaluate__film_active": []}, "film_mode=off"),
        ({"evaluate__mask_feedback": "overlay"}, "mask_feedback"),
    ],
)
def test_evaluations_that_cannot_be_are_refused(prepared: PreparedData, keys: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        run(prepared, **keys)


def test_a_film_mode_without_film_is_refused(prepared: PreparedData) -> None:
    with pytest.raises(ConfigError, match="no FiLM"):
        run(prepared, "backbone", evaluate__film_mode="off")


@pytest.mark.parametrize("count", [2, 3, 10])
def test_no_case_keeps_its_own_condition_when_shuffled(count: int) -> None:
    order = deranged(count, seed=5)
    assert sorted(order) == list(range(count))
    assert all(place != number for place, number in enumerate(order))
    assert deranged(count, seed=5) == order


def picture(path: Path, shape: tuple[int, ...] = (40, 33)) -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(path)
    return path


def test_pictures_of_any_size_get_probability_and_mask_of_their_own_size(tmp_path: Path) -> None:
    config = at_stage(make_config(tmp_path, evaluate__prompt="dark branches", model__num_ensemble=2), "film")
    (tmp_path / "other").mkdir()
    paths = [picture(tmp_path / "a.png"), picture(tmp_path / "other" / "a.png", (30, 61, 3))]
    rows = list(predict(config, kicked_model(make_config(tmp_path)), paths, nothing))
    assert [row["size"] for row in rows] == [[40, 33], [30, 61]]
    assert rows[0]["probability"].name != rows[1]["probability"].name
    assert [row.get("converted") for row in rows] == [None, ["colour made grey"]]
    for row in rows:
        found = row["mask"].content
        assert [list(row[map_].content.shape) for map_ in ("probability", "mask", "spread")] == [row["size"]] * 3
        assert set(np.unique(found)) <= {0, 255}
        assert float((found > 0).mean()) == pytest.approx(row["foreground_fraction"])
        assert row["nfe"] == 8


def test_noise_is_a_function_of_seed_and_pixels(tmp_path: Path) -> None:
    """Another name, format, palette or company changes nothing; other pixels, another depth, seed or draw do."""
    pixels = np.tile(np.array([[10, 200], [90, 160]], np.uint8), (20, 16))
    grey = Image.fromarray(pixels)
    for name in ("a.png", "renamed.png", "b.bmp"):
        grey.save(tmp_path / name)
    grey.convert("P").save(tmp_path / "palette.png")
    Image.merge("RGB", [grey] * 3).save(tmp_path / "colour.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(pixels[::-1]).save(tmp_path / "other.png")
    names = ("a.png", "renamed.png", "b.bmp", "palette.png", "colour.png", "deep.png", "other.png")

    def run(*paths: str, **keys: Any) -> list[Any]:
        config = make_config(tmp_path, evaluate__prompt="dark branches", **keys)
        model = kicked_model(make_config(tmp_path))
        found = list(predict(at_stage(config, "film"), model, [tmp_path / path for path in paths], nothing))
        return [one["spread" if keys.get("model__num_ensemble") else "probability"].content for one in found]

    first, *same, deep, other = run(*names)
    assert all(np.array_equal(first, one) for one in same)
    assert np.array_equal(run("renamed.png")[0], first), "company does not matter"
    assert not np.array_equal(deep, first)
    assert not np.array_equal(other, first)
    assert not np.array_equal(run("a.png", seed=1)[0], first)
    assert run("a.png", model__num_ensemble=2)[0].any(), "members draw noise of their own"


def test_every_unreadable_picture_is_named_before_any_is_predicted(tmp_path: Path) -> None:
    config = at_stage(make_config(tmp_path, evaluate__prompt="dark branches"), "film")
    good, empty, text = picture(tmp_path / "good.png"), tmp_path / "empty.png", tmp_path / "text.png"
    empty.write_bytes(b"")
    text.write_text("no picture")
    with pytest.raises(DataError) as error:
        list(predict(config, kicked_model(make_config(tmp_path)), [good, empty, text], nothing))
    assert "empty.png" in str(error.value)
    assert "text.png" in str(error.value)


def test_a_text_model_needs_a_prompt(tmp_path: Path) -> None:
    config = at_stage(make_config(tmp_path), "film")
    with pytest.raises(ConfigError, match="no prompt"):
        list(predict(config, kicked_model(make_config(tmp_path)), [picture(tmp_path / "a.png")], nothing))


def test_the_prompt_decides_and_film_off_ignores_it(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")

    def run(prompt: str, mode: str = "on") -> bytes:
        config = at_stage(make_config(tmp_path, evaluate__prompt=prompt, evaluate__film_mode=mode), "film")
        (row,) = predict(config, kicked_model(make_config(tmp_path)), [path], nothing)
        return bytes(row["probability"].content.tobytes())

    assert run("dark branches") != run("bright branches")
    assert run("dark branches", "off") == run("bright branches", "off")


def test_a_second_pass_shows_the_encoder_the_first_mask(tmp_path: Path) -> None:
    """With an image condition, the painted picture changes the condition and costs a second pass."""
    path = picture(tmp_path / "a.png")

    def run(feedback: str) -> dict[str, Any]:
        config = make_config(tmp_path, model__cond_source="image", evaluate__mask_feedback=feedback)
        model = kicked_model(config)
        return next(predict(at_stage(config, "film"), model, [path], nothing))

    plain, twice = run("off"), run("overlay")
    assert (plain["nfe"], twice["nfe"]) == (4, 8)
    assert not np.array_equal(plain["probability"].content, twice["probability"].content)

"""The report says what the files say, whatever state the run is in, and nothing in it reaches out of the page."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from stageline.errors import PlanError
from stageline.families import FAMILIES
from stageline.families.film_flow.words import WORDS
from stageline.store import Store, open_store
from stageline.verbs.report import build_report
from stageline.verbs.report.pictures import MAX_BYTES

from .page import Page, report_of
from .run_directory import T0, HandMade, failed_run, finished_run, mp4, png, training_events

HOSTILE = "</script><script>alert(1)</script>\" onload='x' & <b>\x00\x1b[31m \ud800 ☃"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "runs" / "trees"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[HandMade, Page, str]:
    run = finished_run(open_store(str(tmp_path_factory.mktemp("root") / "runs" / "trees")))
    page, text = report_of(run.store)
    return run, page, text


def test_nothing_in_the_page_points_outside(finished: tuple[HandMade, Page, str]) -> None:
    _, page, text = finished
    for tag, attrs in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attrs.items():
            assert not name.startswith("on"), f"{tag} has {name}"
            if name in ("href", "src", "action", "xlink:href", "data"):
                assert value is not None
                assert value.startswith(("#", "data:image/png;base64,")), f"{tag} {name}={value[:40]}"
    assert not re.search(r"url\(|@import|https?://", text)
    assert any("default-src 'none'" in (attrs.get("content") or "") for attrs in page.of("meta"))


def test_what_was_read_of_the_data_is_told_with_its_warnings(store: Store) -> None:
    run = finished_run(store)
    read = {"told": [["pictures", "4 (png 4)"]], "warnings": ["1 of 4 labels <inverted>"]}
    run.store.put("data.json", json.dumps({"train": read, "val": {"told": [], "warnings": []}}).encode())
    _, text = report_of(run.store)
    assert ">4 (png 4)<" in text
    assert "train: 1 of 4 labels &lt;inverted&gt;" in text
    assert "What was read" in text


def test_every_chart_has_a_description_and_a_table(finished: tuple[HandMade, Page, str]) -> None:
    _, _, text = finished
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    charts = [figure for figure in figures if 'class="chart' in figure]
    # Timeline, lineage; loss, learning rate and gradient of each stage; two validations of film.
    assert len(charts) == 2 + 2 * 3 + 2
    for chart in charts:
        assert 'role="img"' in chart
        assert re.search(r'aria-label="[^"]{10,}"', chart)
        assert "<table>" in chart or '<table class="numbers">' in chart
        assert "<caption>" in chart


def test_links_inside_the_page_have_a_target_and_ids_are_unique(finished: tuple[HandMade, Page, str]) -> None:
    _, page, _ = finished
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    targets = [(attrs.get("href") or "") for attrs in page.of("a")]
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_numbers_shown_are_the_numbers_in_the_files(finished: tuple[HandMade, Page, str]) -> None:
    run, page, _ = finished
    shown = {attrs["value"] for attrs in page.of("data")}
    metrics = json.loads(run.store.get(f"evaluations/{'a' * 64}/metrics.json"))["metrics"]
    events = [json.loads(line) for line in run.store.get("film/events.jsonl").decode().splitlines()]
    expected = [*metrics.values()]
    for event in events:
        expected += [event[key] for key in ("loss", "learning_rate", "gradient_norm") if key in event]
        expected += event.get("metrics", {}).values()
        expected += event.get("parts", {}).values()
    assert len(expected) > 100
    missing = [value for value in expected if json.dumps(value) not in shown]
    assert not missing


def test_modes_stand_side_by_side_with_sample_counts(finished: tuple[HandMade, Page, str]) -> None:
    _, page, _ = finished
    assert page.row("metric") == ["metric", "FiLM on", "FiLM off", "conditions shuffled", "samples"]
    assert page.row("dice") == ["dice", "0.8712", "0.5100", "0.4000", "48"]
    assert page.row("cldice") == ["cldice", "0.9300", "", "", "48"]


def test_provenance_is_shown(finished: tuple[HandMade, Page, str]) -> None:
    _, page, _ = finished
    for name, value in (("decoder_stages", "[2, 3]"), ("stages_origin", "metadata"), ("nfe", "4"), ("film_mode", "on")):
        assert page.row(name) == [name, value]


def test_lineage_names_parents_digests_and_outcomes(finished: tuple[HandMade, Page, str]) -> None:
    run, page, text = finished
    for digest in run.digests.values():
        assert digest[:12] in page.text
        assert f"@sha256:{digest}" in page.text
    titles = ["film · step 250 · final", "backbone · step 80 · final"]
    rows = [row for row in page.cells if row[:2] == titles]
    assert [row[2:6] for row in rows] == [["default", "ema", "backbone", "load"], ["default", "ema", "film", "fresh"]]
    assert "the parent has no heads" in text
    assert "same plan of channels" in text


def test_diagnostics_per_decoder_stage_are_folded_and_other_metrics_are_not(store: Store) -> None:
    run = HandMade(store)
    run.claim()
    metrics = {"film_2_change": 0.3, "film_3_change": 0.4, "junction_f1": 0.5, "dice": 0.6}
    run.events("film", [*training_events(T0, 40), {"time": T0, "event": "validation", "step": 40, "metrics": metrics}])
    _, text = report_of(store)
    before, _, folded = text.partition("1 more chart: validation diagnostics")
    assert "film: validation (film_2_change, film_3_change)" in folded
    assert "film: validation (junction_f1, dice)" in before


def test_skipped_steps_and_resumptions_are_marked_in_every_chart_of_their_stage(
    finished: tuple[HandMade, Page, str],
) -> None:
    _, _, text = finished
    charts = re.findall(r'<figure id="chart-film.*?</figure>', text, re.DOTALL)
    assert len(charts) == 5
    for chart in charts:
        assert "step 107 skipped: loss is nan" in chart
        assert "resumed from step 107" in chart
    assert "skipped" not in "".join(re.findall(r'<figure id="chart-backbone.*?</figure>', text, re.DOTALL))


def test_timeline_has_a_bar_per_session(finished: tuple[HandMade, Page, str]) -> None:
    _, page, _ = finished
    rows = [row for row in page.cells if row and row[-1].startswith(("finished at", "interrupted at"))]
    assert [(row[0], row[3]) for row in rows] == [
        ("backbone", "finished at step 80"),
        ("film", "interrupted at step 107"),
        ("film", "finished at step 250"),
    ]


def test_pipeline_steps_beside_the_stages_are_in_the_timeline(store: Store) -> None:
    run = finished_run(store)
    lines = [
        {"item": "prepare_data", "state": "running", "text": "preparing", "seconds": 0.1, "time": T0 - 5},
        {"item": "prepare_data", "state": "done", "text": "2 files", "seconds": 4.0, "time": T0 - 1},
        {"item": "film", "state": "done", "text": "250 steps", "seconds": 30.0, "time": T0 + 38.5},
        {"item": "evaluate", "state": "done", "text": "digest", "seconds": 6.5, "time": T0 + 45},
        {"item": "evaluate", "state": "reused", "text": "digest", "seconds": 0.0, "time": T0 + 500},
    ]
    run.store.put("events.jsonl", "".join(json.dumps({"event": "step", **line}) + "\n" for line in lines).encode())
    page, _ = report_of(store)
    assert [row for row in page.cells if row and row[-1] == "done"] == [
        ["prepare_data", "0.0 s", "4.0 s", "done"],
        ["evaluate", "44 s", "6.5 s", "done"],
    ]
    frames = [row for row in page.cells if row and row[-1] == "whole step, with starting up"]
    assert [row[:3] for row in frames] == [["film", "14 s", "30 s"]]


def test_a_stage_that_was_not_selected_is_not_missing(store: Store) -> None:
    run = HandMade(store)
    run.claim()
    run.json("plan.json", {"items": [{"name": "backbone", "action": "not selected", "reasons": ["stages: ['film']"]}]})
    run.checkpoint("film", 250, 250)
    page, _ = report_of(store)
    assert "Every stage is finished" in page.text
    assert page.row("backbone") == ["backbone", "not selected", "stages: ['film']"], "only in the plan"


def test_a_stage_of_another_run_is_not_missing(store: Store) -> None:
    """Its checkpoint is named, as the plan says or the stage that started from it."""
    place = "runs/first/backbone/checkpoints/step-00000080"
    run = HandMade(store)
    run.claim()
    root = store.uri.rpartition("/runs/")[0]
    item = {
        "name": "backbone",
        "kind": "stage",
        "action": "reuse",
        "reasons": [],
        "reference": f"{root}/{place}@sha256:{64 * 'a'}",
    }
    run.json("plan.json", {"items": [item]})
    run.checkpoint("film", 250, 250)
    page, _ = report_of(store)
    assert "Every stage is finished" in page.text
    assert [*page.row("backbone")[:2], page.row("backbone")[-1]] == ["backbone", "from another run", place]


def test_pictures_are_embedded_with_an_alternative_text(finished: tuple[HandMade, Page, str]) -> None:
    _, page, _ = finished
    (picture,) = page.of("img")
    assert base64.b64decode((picture["src"] or "").partition(",")[2]) == png(60, 20)
    assert picture["alt"] == (
        "Image, truth, predictions, probability and junctions of a/dark, prompt 'dark branches'. "
        "Dice: FiLM on 0.90, FiLM off 0.25."
    )
    assert (picture["width"], picture["height"]) == ("60", "20")


def test_clips_are_played_from_within_the_page(store: Store) -> None:
    """By what their bytes are, not by their names; hostile names stay text; a large one is named with its path."""
    run = finished_run(store)
    folder, hostile = f"evaluations/{'a' * 64}", "x\" autoplay onplay='alert(1)' <b>-001.mp4"
    whole = mp4(b"sound and pictures")
    store.put(f"{folder}/pair-000.mp4", whole)
    store.put(f"{folder}/{hostile}", whole)
    broken = {"cut": whole[:-1], "page": b"<html>" * 9, "empty": b"", "still": whole.replace(b"moov", b"free")}
    for name, data in broken.items():
        store.put(f"{folder}/{name}.MP4", data)
    store.put(f"{folder}/long.mp4", mp4(bytes(MAX_BYTES)))
    page, text = report_of(store)
    clips = list(page.of("video"))
    assert [sorted(attrs) for attrs in clips] == [["aria-label", "controls", "preload", "src"]] * 2
    for attrs in clips:
        head, _, data = (attrs["src"] or "").partition(",")
        assert (head, base64.b64decode(data)) == ("data:video/mp4;base64", whole)
    assert {attrs["aria-label"] for attrs in clips} == {
        "Sample clip of a/dark, prompt 'dark branches'. Dice: FiLM on 0.90, FiLM off 0.25.",
        "Sample clip of b. Dice: FiLM on 0.80.",
    }
    assert hostile in page.text
    assert not list(page.of("b"))
    assert text.count("This file is not a whole MP4 clip") == len(broken)
    assert f"Not embedded: 6.0 MB is too large for a report. It lies at {folder}/long.mp4" in page.text
    assert "media-src data:" in (next(a for a in page.of("meta") if "http-equiv" in a)["content"] or "")
    assert "Pictures and clips" in page.text
    assert run


def test_command_config_environment_and_status_are_there(finished: tuple[HandMade, Page, str]) -> None:
    _, page, _ = finished
    assert "stageline run config.yaml run=trees" in page.text
    assert "learning_rate: 0.003" in page.text
    assert page.row("torch") == ["torch", "2.13.0"]
    assert "Every stage is finished and evaluated." in page.text


def test_the_same_files_give_the_same_report(finished: tuple[HandMade, Page, str]) -> None:
    run, _, text = finished
    build_report(run.store.uri)
    assert run.store.get("report.html").decode() == text


def test_failed_run_says_what_happened_and_what_to_do(store: Store) -> None:
    failed_run(store)
    page, text = report_of(store)
    assert "Stage film failed after step 70; its last checkpoint stands at step 50 of 250." in page.text
    for words in (
        "the device ran out of memory in step 61",
        "lower trainer.batch_size and raise trainer.accumulate_grad_batches",
        "Exit code 8 on rank 1 (fix it first",
        "RuntimeError: out of memory",
    ):
        assert words in page.text
    assert "failed at step" in text, "the timeline's last bar"
    assert "Nothing has been evaluated." in page.text


def test_interrupted_run_says_try_again(store: Store) -> None:
    run = failed_run(store)
    run.json("film/failure.json", {"kind": "interrupted", "sentence": "stopped", "remedy": "again", "exit_code": 143})
    page, _ = report_of(store)
    assert "try again: the same command continues" in page.text
    assert "was stopped at step 50 of 250" in page.text


def test_an_interruption_is_told_once(store: Store) -> None:
    """A stopped stage leaves its end in the events, a record of it, and the run one more."""
    run = failed_run(store)
    told = {"kind": "interrupted", "sentence": "stopped after step 50", "remedy": "again", "exit_code": 143}
    run.json("film/failure.json", told)
    run.json("failure.json", told | {"sentence": "the run was stopped"})
    events = [
        {"time": T0, "event": "started", "step": 0, "steps": 250},
        {"time": T0 + 5, "event": "interrupted", "step": 50, "reason": "SIGTERM"},
        {"time": T0 + 5.1, "event": "failed", **told},
    ]
    run.store.put("film/events.jsonl", "".join(json.dumps(event) + "\n" for event in events).encode())
    page, text = report_of(store)
    assert [row[-1] for row in page.cells if row and row[0] == "film" and "at step" in row[-1]] == [
        "interrupted at step 50"
    ]
    assert text.count("Stage film was interrupted.") == 1
    assert "This run was interrupted" not in page.text


def test_a_step_that_failed_before_its_stage_began_has_a_bar_of_its_own(store: Store) -> None:
    run = HandMade(store)
    run.claim()
    line = {"event": "step", "item": "backbone", "state": "failed", "text": "damaged", "seconds": 9.0, "time": T0}
    run.store.put("events.jsonl", (json.dumps(line) + "\n").encode())
    run.json("backbone/failure.json", {"kind": "data", "sentence": "damaged", "remedy": "mend", "exit_code": 3})
    page, _ = report_of(store)
    assert [row for row in page.cells if row and row[-1] == "failed"] == [["backbone", "0.0 s", "9.0 s", "failed"]]


def test_unfinished_run_says_when_it_was_last_heard_of(store: Store) -> None:
    run = failed_run(store)
    run.store.delete("film/failure.json")
    page, _ = report_of(store)
    assert "Stage film is not finished: its last checkpoint stands at step 50 of 250, last heard of 2026-" in page.text


def test_run_that_was_only_claimed_has_a_report(store: Store) -> None:
    HandMade(store).claim()
    page, _ = report_of(store)
    assert "No stage of this run has started." in page.text
    assert page.row("film")[:2] == ["film", "not started"]


def test_a_place_without_a_run_is_refused_and_nothing_is_written(store: Store) -> None:
    with pytest.raises(PlanError, match="there is no run at"):
        build_report(store.uri)
    assert store.list() == []


def test_object_store_with_event_segments() -> None:
    store = open_store("memory://report-test/runs/trees")
    run = finished_run(store)
    page, _ = report_of(store)
    assert run.digests["film"][:12] in page.text
    assert page.row("dice")[-1] == "48"
    assert len([row for row in page.cells if row and row[-1].startswith("finished at step")]) == 2


def test_hostile_strings_stay_text(store: Store) -> None:
    run = failed_run(store)
    run.claim(command=HOSTILE, versions={HOSTILE: HOSTILE, "stageline": HOSTILE})
    run.json("film/failure.json", {"kind": HOSTILE, "sentence": HOSTILE, "remedy": HOSTILE, "log_tail": [HOSTILE]})
    events: list[dict[str, Any]] = training_events(T0, 50)
    events[1]["parts"] = {HOSTILE: 1.0, "b": 2.0}
    run.events("film", [*events, {"time": T0 + 6, "event": "skipped", "step": 51, "reason": HOSTILE}])
    run.evaluation(metrics={HOSTILE: 0.5}, provenance={HOSTILE: HOSTILE, "warnings": [HOSTILE]}, notes=[HOSTILE])
    run.store.put(f"evaluations/{'a' * 64}/rows.csv", f'id,prompt\n"{HOSTILE[:20]}",x\n'.encode())
    run.store.put("film/config.yaml", HOSTILE.encode("utf-8", "replace"))
    page, text = report_of(store)
    assert not list(page.of("script"))
    assert not list(page.of("b"))
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert "<script>" not in text
    assert "\x00" not in text
    assert "\x1b" not in text
    assert "☃" in page.text


def test_pseudo_labels_are_named_at_every_number(store: Store) -> None:
    run = finished_run(store)
    run.evaluation("b" * 64, provenance={"labels": "pseudo-label: ridge filter", "film_mode": "on"})
    page, _ = report_of(store)
    assert "they are no accuracy" in page.text
    assert page.row("dice (pseudo-label)")[1] == "0.8712"
    assert page.row("dice")[1] == "0.8712", "the other evaluation has real labels"
    captions = [attrs["alt"] or "" for attrs in page.of("img")]
    assert [("pseudo-label" in caption) for caption in captions] == [False, True]


def test_ablation_is_marked(store: Store) -> None:
    run = HandMade(store)
    run.claim()
    run.evaluation(provenance={"ablation": True, "film_active": [2]})
    page, _ = report_of(store)
    assert "Not all trained decoder stages were active" in page.text


def test_damaged_files_become_lines_of_the_report(store: Store) -> None:
    run = finished_run(store)
    run.store.put("plan.json", b"{")
    run.store.put("film/events.jsonl", b'{"time": 1, "event": "step"}\nnot json\n')
    key = "backbone/checkpoints/step-00000080/checkpoint_metadata.json"
    run.store.put(key, run.store.get(key).replace(b'"step": 80', b'"step": 81', 1))
    run.store.put(f"evaluations/{'a' * 64}/sample-000.png", b"no picture")
    page, _ = report_of(store)
    assert "Not everything could be read." in page.text
    for words in ("plan.json", "an event line is not JSON", "backbone/best.ckpt", "This file is not a PNG picture"):
        assert words in page.text
    assert run.digests["film"][:12] in page.text, "what can be read is still there"


def test_credentials_are_redacted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_ACCESS_TOKEN", "correct-horse-battery")
    run = failed_run(store)
    run.claim(command="stageline run c.yaml root=s3://AKIAABCDEFGHIJKLMNOP:hunter2hunter2@bucket")
    run.json("film/failure.json", {"sentence": "password=opensesame42 and correct-horse-battery", "exit_code": 5})
    run.store.put("film/config.yaml", b"data:\n  api_key: abcdef123456\n")
    _, text = report_of(store)
    for secret in ("hunter2", "AKIAABCDEFGHIJKLMNOP", "opensesame42", "correct-horse-battery", "abcdef123456"):
        assert secret not in text
    assert "***" in text


def test_parent_of_another_run_is_drawn_as_such(store: Store) -> None:
    other = HandMade(open_store(store.uri.replace("trees", "other")), name="other")
    parent = other.checkpoint("backbone", 80, 80)
    run = HandMade(store)
    run.claim(stages={"film": "film"})
    run.checkpoint("film", 250, 250, parents={"default": parent})
    page, text = report_of(store)
    assert 'class="node outside"' in text
    assert parent.digest[:12] in page.text


def test_stage_variants_are_stages_of_their_own(store: Store) -> None:
    run = HandMade(store)
    run.claim(stages={"film": "film"})
    run.events("film/anyres", training_events(T0, 20))
    run.checkpoint("film/anyres", 20, 20)
    page, _ = report_of(store)
    assert any(row[:2] == ["film/anyres", "finished"] for row in page.cells)
    assert "Every stage is finished; nothing has been evaluated yet." in page.text


def test_a_report_of_another_family_has_no_word_of_film_flow(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "families"))
    monkeypatch.setitem(FAMILIES, "toy", "toy_family")
    run = HandMade(store, name="toys")
    run.claim(run="toys", family="toy", stages={"base": "base"}, identity={"family": "toy"}, command="stageline run c")
    run.events("base", [{"time": T0, "event": "step", "step": 1, "loss": 0.5}])
    run.checkpoint("base", 10, 10, family="toy", facts={"width": 8}, best=None, trained={})
    metrics = {"error": 0.25, "error_on": 0.5, "odd": None}
    run.evaluation(
        metrics=metrics,
        reasons={"odd": "there is one sample"},
        num_samples={"error": 7},
        provenance={"split": "val", "oracle": True, "ablation": True},
    )
    run.store.put(f"evaluations/{'a' * 64}/rows.csv", b"id,error\nx,0.25\n")
    page, text = report_of(store)
    assert page.row("metric") == ["metric", "value", "samples"]
    assert page.row("error_on")[1] == "0.5000", "another family's modes split no metric of this one"
    assert page.row("odd")[1] == "none (there is one sample)"
    (picture,) = page.of("img")
    assert picture["alt"] == "Sample picture of x. Squared error: 0.25."
    foreign = [*WORDS.modes.values(), *WORDS.pictures.values(), *WORDS.cautions.values()]
    foreign += [*(word for word in WORDS.told.values() if word not in ("split", "weights", "labels", "solver"))]
    foreign += ["film", "decoder", "junction", "dice", "vessel", "betti", "prompt", "NFE"]
    assert [word for word in foreign if word.lower() in text.lower()] == []


def test_the_familys_main_metrics_come_first_and_its_sentence_is_told(store: Store) -> None:
    run = HandMade(store)
    run.claim()
    metrics = {"specificity": 0.1, "junction_f1": 0.25, "dice": 0.75, "cldice": 0.5}
    run.evaluation(metrics=metrics, num_samples={})
    page, text = report_of(store)
    assert "Dice 0.75, clDice 0.5, junction F1 0.25." in page.text
    assert [row[0] for row in page.cells if row[0] in metrics] == ["dice", "cldice", "junction_f1", "specificity"]
    before, _, _ = text.partition("1 more metrics")
    assert "specificity" not in before
    run.evaluation(metrics={**metrics, "dice": None})
    assert "clDice 0.5" not in report_of(store)[0].text, "a sentence with a number that is not there is not told"


def test_several_checkpoints_of_one_evaluation_stand_one_after_another(store: Store) -> None:
    run = HandMade(store)
    run.claim()
    place = f"evaluations/{'a' * 64}"
    run.json(
        f"{place}/metrics.json",
        {
            "schema": "stageline-evaluation/2",
            "metrics": {"old.dice": 0.5, "new.dice": 0.75},
            "reasons": {},
            "num_samples": {"old.dice": 3, "new.dice": 4},
            "provenance": {"split": "test"},
            "checkpoints": {
                "old": {
                    "stage": "backbone",
                    "step": 3,
                    "uri": "u",
                    "digest": "d",
                    "provenance": {"nfe": 2},
                    "notes": [],
                },
                "new": {
                    "stage": "film",
                    "step": 5,
                    "uri": "v",
                    "digest": "e",
                    "provenance": {"nfe": 6},
                    "notes": ["so"],
                },
            },
            "files": {"new/clip.mp4": {"sha256": "0", "bytes": 12, "type": "video/mp4"}},
        },
    )
    run.store.put(f"{place}/rows.csv", b"checkpoint,id,dice\nold,a,0.5\nnew,a,0.75\n")
    for name in ("old", "new"):
        run.store.put(f"{place}/{name}/sample-000.png", png(60, 20))
    page, _ = report_of(store)
    assert "old: backbone at step 3" in page.text
    assert "new: film at step 5" in page.text
    assert [row for row in page.cells if row[0] == "dice"] == [["dice", "0.5000", "3"], ["dice", "0.7500", "4"]]
    assert [row[1] for row in page.cells if row[0] == "nfe"] == ["2", "6"]
    assert page.row("new/clip.mp4") == ["new/clip.mp4", "video/mp4", "12 B"]
    assert ["0.5" in (a["alt"] or "") for a in page.of("img")] == [True, False]

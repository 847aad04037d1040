"""Pictures of a report: each is in it once, beside its kind, in full size on request, and only while there is room."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from stageline.families.film_flow.words import WORDS
from stageline.store import Store, open_store
from stageline.verbs.report import build_report
from stageline.verbs.report.gallery import MAX_REPORT_BYTES, pictures_part
from stageline.verbs.report.html import join
from stageline.verbs.report.pictures import MAX_BYTES, MAX_PIXELS
from stageline.verbs.report.record import read_run
from stageline.verbs.report.style import CSS

from .page import report_of
from .run_directory import HandMade, failed_run, png

FOLDER = f"evaluations/{'a' * 64}"
PARTS = ("image", "truth", "outlines", "prediction", "prediction_off", "probability")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "runs" / "trees"))


def evaluated(store: Store, samples: int, parts: tuple[str, ...] = PARTS) -> list[bytes]:
    """A run with an evaluation of some samples, each better than the one before it; the bytes of all pictures."""
    run = HandMade(store)
    run.claim()
    run.evaluation(metrics={"dice": 0.5, "dice_off": 0.25}, num_samples={"dice": samples})
    store.delete(f"{FOLDER}/sample-000.png")
    lines = [
        f"s{n},dark,{mode},{(n + 1) / 100 / (1 + (mode == 'off'))}" for n in range(samples) for mode in ("on", "off")
    ]
    store.put(f"{FOLDER}/rows.csv", "\r\n".join(["id,prompt,mode,dice", *lines]).encode())
    made = []
    for n in range(samples):
        for place, part in enumerate(parts):
            made.append(png(8 + place, 9, n))
            store.put(f"{FOLDER}/{part}-{n:03d}.png", made[-1])
    return made


def test_every_picture_is_in_the_page_once_and_its_full_size_is_the_same_element(store: Store) -> None:
    made = evaluated(store, 4)
    page, text = report_of(store)
    assert len(list(page.of("img"))) == len(made) == 24
    for data in made:
        assert text.count(base64.b64encode(data).decode()) == 1
    ids = [attrs["id"] or "" for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch("[A-Za-z][A-Za-z0-9-]*", name) for name in ids)
    opened = [attrs["href"] or "" for attrs in page.of("a") if attrs.get("class") == "open"]
    closed = [attrs["href"] or "" for attrs in page.of("a") if attrs.get("class") == "close"]
    assert len(opened) == len(closed) == 24
    for link, back in zip(opened, closed, strict=True):
        inside = re.search(rf'<div class="full" id="{link[1:]}">(.*?)</div>', text, re.DOTALL)
        assert inside is not None
        assert inside[1].count("<img ") == 1
        assert f'<figure id="{back[1:]}"' in text
    assert not list(page.of("script"))


def test_best_median_and_worst_come_first_then_the_others(store: Store) -> None:
    evaluated(store, 5, ("image",))
    _, text = report_of(store)
    assert re.findall(r"<h4>(s\d), prompt &#x27;dark&#x27;(?:, (\w+))?</h4>", text) == [
        ("s4", "best"),
        ("s2", "median"),
        ("s0", "worst"),
        ("s1", ""),
        ("s3", ""),
    ]


def test_captions_follow_the_familys_order_and_tell_the_value_of_each_mode(store: Store) -> None:
    evaluated(store, 1, ("prediction_off", "probability", "prediction", "image"))
    _, text = report_of(store)
    captions = re.findall(r'<figcaption title="[^"]*">(.*?)</figcaption>', text)
    assert captions[:4] == [
        "input image",
        "predicted mask, FiLM on, dice 0.01",
        "predicted mask, FiLM off, dice 0.01",
        "probability of the mask",
    ]


def test_texts_of_a_sample_that_are_long_are_listed_and_cut(store: Store) -> None:
    evaluated(store, 1, ("image",))
    store.put(f"{FOLDER}/rows.csv", f"id,prompt,mode,dice\r\n{'n' * 5000},{'why <b> ' * 5000},on,0.5\r\n".encode())
    page, text = report_of(store)
    assert "<dt>prompt</dt><dd>why &lt;b&gt; why" in text
    assert "n" * 301 not in text
    assert not list(page.of("b"))


def test_names_of_files_are_text_and_never_addresses(store: Store) -> None:
    evaluated(store, 1, ("image",))
    for name in ("a\" onload='x' <b>-000.png", "javascript:alert(1)-000.png", "picture-1.png", "full-1.png"):
        store.put(f"{FOLDER}/{name}", png(8, 8))
    page, _ = report_of(store)
    assert len(list(page.of("img"))) == 5
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert not list(page.of("b"))
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert all((attrs["href"] or "").startswith("#") for attrs in page.of("a"))


def test_a_picture_composed_of_several_has_a_row_for_itself(store: Store) -> None:
    """As evaluations that were made with older versions have them."""
    evaluated(store, 1, ("image",))
    store.put(f"{FOLDER}/sample-000.png", png(90, 30))
    _, text = report_of(store)
    (wide,) = re.findall(r'<figure id="[^"]*" class="wide">.*?</figure>', text, re.DOTALL)
    assert "Image, truth, predictions, probability and junctions of s0" in wide


def test_a_picture_too_large_when_decoded_is_not_embedded(store: Store) -> None:
    evaluated(store, 1, ("image",))
    side = 70_000
    bomb = png(1, 1)
    store.put(f"{FOLDER}/truth-000.png", bomb[:16] + side.to_bytes(4, "big") * 2 + bomb[24:])
    store.put(f"{FOLDER}/outlines-000.png", bomb[:16] + bytes(8) + bomb[24:])
    page, _ = report_of(store)
    assert side * side > MAX_PIXELS
    assert len(list(page.of("img"))) == 1
    assert (
        f"Not embedded: 70000 x 70000 pixels are too large for a report. It lies at {FOLDER}/truth-000.png" in page.text
    )
    assert "This file is not a PNG picture" in page.text


def test_a_report_stays_below_its_size_and_keeps_the_notable_samples(store: Store) -> None:
    """Six samples of 5.5 MB, 44 MB as text: three have room, and they are the best, the median and the worst."""
    evaluated(store, 6, ("image",))
    for n in range(6):
        store.put(f"{FOLDER}/image-{n:03d}.png", png(8, 8, n) + bytes(MAX_BYTES - 500_000))
    build_report(store.uri)
    text = store.get("report.html").decode()
    assert 3 * 5_500_000 * 4 / 3 < len(text.encode()) <= MAX_REPORT_BYTES == 25_000_000
    assert re.findall(r"<h4>(s\d).*?(?:, (\w+))?</h4>", text) == [("s5", "best"), ("s2", "median"), ("s0", "worst")]
    assert (
        f"3 files of 3 samples left out, so that this report stays below 25 MB. They lie at <code>{FOLDER}</code>"
        in text
    )


def test_what_is_drawn_takes_no_more_than_the_room(store: Store) -> None:
    made = evaluated(store, 9)
    record = read_run(store)
    whole = len(join(pictures_part(record.evaluations, WORDS, 10**9)).encode())
    for room in (0, whole // 3, whole // 2, whole):
        shown = join(pictures_part(record.evaluations, WORDS, room))
        assert len(shown.encode()) <= room + 1_000, "headings and the sentence come on top"
        assert (shown.count("<img ") < len(made)) == ("left out" in shown)


def test_pictures_are_read_only_for_a_report_that_shows_them(store: Store) -> None:
    """What cannot be read any more is told, whatever part of the page found out."""
    evaluated(store, 1, ("image",))
    record = read_run(store)
    store.delete(f"{FOLDER}/image-000.png")
    shown = join(pictures_part(record.evaluations, WORDS))
    assert "This file is not a PNG picture" in shown
    assert any("image-000.png" in line for line in record.unreadable)


def test_nothing_in_the_style_changes_the_pixels_of_a_picture() -> None:
    assert "prefers-color-scheme: dark" in CSS
    for word in ("filter", "mix-blend-mode", "opacity", "invert", "brightness"):
        assert word not in CSS


def test_parts_with_nothing_in_them_are_named_in_one_closed_line(store: Store) -> None:
    failed_run(store)
    page, text = report_of(store)
    assert "<details><summary>Not there: Metrics, Pictures</summary>" in text
    assert "Metrics: Nothing has been evaluated." in page.text
    headings = re.findall(r'<h2 id="([^"]*)"', text)
    assert "metrics" not in headings
    assert "#metrics" not in [attrs["href"] for attrs in page.of("a")]

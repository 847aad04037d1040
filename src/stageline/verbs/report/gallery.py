"""The pictures and clips of all evaluations, sample by sample, as many as the report has room for.

The best, the median and the worst sample of each evaluation come first, on the page and into the room.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stageline.contract import Words
from stageline.verbs.compare.bootstrap import as_number
from stageline.verbs.report.html import Child, Markup, clipped, count, fold, tag
from stageline.verbs.report.measurements import PSEUDO, is_pseudo, provenance_of, titles_of
from stageline.verbs.report.overview import Row, main_metric, notable_samples
from stageline.verbs.report.pictures import Media, Told, figure
from stageline.verbs.report.record import EvaluationRecord

MAX_REPORT_BYTES = 25_000_000
"""Of the whole report, so that it can be mailed."""
FIGURE_BYTES = 1_000
"""What a figure takes beside its picture, about."""
ON_ONE_LINE = 60
"""Characters of a sample's texts up to which they stand in its heading."""


@dataclass(frozen=True)
class Sample:
    """What an evaluation has of one sample.

    rows: its own, one per mode; none for files that belong to no sample.  notable: best, median, worst or nothing.
    media: its pictures in the family's order, then its clips, each with its number on the page.
    """

    evaluation: EvaluationRecord
    rows: Sequence[Row]
    notable: str
    media: Sequence[tuple[int, Media]]

    @property
    def name(self) -> str:
        return clipped(self.rows[0]["id"]) if self.rows else ""

    @property
    def pseudo(self) -> str:
        """What stands behind its name where its labels are no person's."""
        return f" ({PSEUDO}-label)" if is_pseudo(self.evaluation.metrics) else ""


def pictures_part(evaluations: Sequence[EvaluationRecord], words: Words, room: int = MAX_REPORT_BYTES) -> list[Child]:
    """Every evaluation's pictures and clips; nothing where there are none. room: bytes that the report has for them."""
    samples: list[Sample] = []
    for record in evaluations:
        samples += samples_of(record, words, sum(len(sample.media) for sample in samples))
    drawn: dict[int, Markup] = {}
    for place in sorted(range(len(samples)), key=lambda n: not samples[n].notable):
        sample = samples[place]
        if sum(4 * media.num_bytes // 3 + FIGURE_BYTES for _, media in sample.media if not media.is_too_large) > room:
            continue
        shown = sample_part(sample, words)
        if (needed := len(shown.encode())) <= room:
            room -= needed
            drawn[place] = shown
    parts: list[Child] = []
    for record, title in zip(evaluations, titles_of(evaluations, words), strict=True):
        own = [place for place, sample in enumerate(samples) if sample.evaluation is record]
        if own:
            parts.append(tag("h3", title))
            if provenance_of(record).get("pictures"):
                parts.append(tag("p", clipped(str(provenance_of(record)["pictures"]))))
            first = [drawn[place] for place in own if place in drawn and samples[place].notable]
            others = [drawn[place] for place in own if place in drawn and not samples[place].notable]
            parts += (
                [*first, fold(f"{count(len(others), 'more sample')}", others)] if first and others else first + others
            )
            parts.append(left_out([samples[place] for place in own if place not in drawn]))
    return parts


def left_out(samples: Sequence[Sample]) -> Markup | None:
    """What the report had no room for, and where it lies."""
    if not samples:
        return None
    files = count(sum(len(sample.media) for sample in samples), "file")
    text = f"{files} of {count(len(samples), 'sample')} left out, so that this report stays below 25 MB. They lie at "
    return tag("p", text, tag("code", folder_of(samples[0].evaluation)), class_="quiet")


def folder_of(record: EvaluationRecord) -> str:
    """Below the run directory."""
    return f"evaluations/{record.fingerprint}"


def samples_of(record: EvaluationRecord, words: Words, numbered: int) -> list[Sample]:
    """The samples that an evaluation has files of: best, median, worst, then the others in their order, then files of
    no sample. numbered: how many pictures and clips of the page have a number already."""
    ids = list(dict.fromkeys(row["id"] for row in record.rows if row.get("id")))
    rows: dict[str, list[Row]] = {}
    for row in record.rows:
        rows.setdefault(row.get("id", ""), []).append(row)
    told = notable_samples(record, words)
    places = [ids.index(name) for name in told] + [n for n, name in enumerate(ids) if name not in told]
    found: dict[int, list[Media]] = {place: [] for place in places}
    for media in record.media:
        _, place = parts_of(media.name)
        found.setdefault(place if place in found else -1, []).append(media)
    samples = []
    for place, listed in found.items():
        if listed:
            ordered = sorted(listed, key=lambda m: (m.is_clip, order_of(m.name, words)))
            own = list(enumerate(ordered, numbered + 1))
            numbered += len(own)
            name = ids[place] if place >= 0 else ""
            samples.append(Sample(record, rows[name] if place >= 0 else (), told.get(name, ""), own))
    return samples


def parts_of(name: str) -> tuple[str, int]:
    """(what it shows, place of its sample) of a file named `<what>-<place>.png`; (its stem, -1) of any other."""
    stem = name.rsplit("/", 1)[-1].rpartition(".")[0]
    match = re.fullmatch(r"(.+)-(\d{1,9})", stem)
    return (match[1], int(match[2])) if match else (stem, -1)


def what_of(name: str, words: Words) -> tuple[str, str]:
    """(picture, mode) of a file, as the family names them; mode is "" where its name says none."""
    what, _ = parts_of(name)
    for mode in words.modes:
        if what.endswith(f"_{mode}") and what.removesuffix(f"_{mode}") in words.pictures:
            return what.removesuffix(f"_{mode}"), mode
    return what, ""


def order_of(name: str, words: Words) -> tuple[int, int, str]:
    """The place of a picture among those of its sample: the family's order of pictures, then of modes."""
    what, mode = what_of(name, words)
    pictures, modes = list(words.pictures), list(words.modes)
    return (
        pictures.index(what) if what in pictures else len(pictures),
        modes.index(mode) + 1 if mode in modes else 0,
        name,
    )


def sample_part(sample: Sample, words: Words) -> Markup:
    """Heading, texts and figures of one sample."""
    texts = texts_of(sample, words)
    heading, listed = title_of(sample, texts), None
    if sample.rows and not fits(texts):
        listed = tag("dl", [[tag("dt", word), tag("dd", text)] for word, text in texts], class_="facts")
    figures = [figure(media, told(sample, number, media, words)) for number, media in sample.media]
    return tag(
        "section",
        tag("h4", heading) if heading else None,
        listed,
        tag("div", figures, class_="pictures"),
        class_="sample",
    )


def texts_of(sample: Sample, words: Words) -> list[tuple[str, str]]:
    """(word, text) of what the family tells of a sample, from its first row."""
    row = sample.rows[0] if sample.rows else {}
    return [(word, clipped(row[column])) for column, word in words.samples.items() if row.get(column)]


def fits(texts: Sequence[tuple[str, str]]) -> bool:
    """Whether texts stand on one line with the sample's name."""
    return sum(len(word) + len(text) for word, text in texts) <= ON_ONE_LINE


def title_of(sample: Sample, texts: Sequence[tuple[str, str]]) -> str:
    """Name, texts where they are short, and whether it is the best, the median or the worst."""
    if not sample.rows:
        return ""
    said = [f"{word} {text!r}" for word, text in texts] if fits(texts) else []
    return ", ".join([sample.name, *said]) + sample.pseudo + (f", {sample.notable}" if sample.notable else "")


def told(sample: Sample, number: int, media: Media, words: Words) -> Told:
    """What is said of one picture or clip: what it shows, its mode with the mode's main metric."""
    what, mode = what_of(media.name, words)
    kind = "clip" if media.is_clip else "picture"
    path = f"{folder_of(sample.evaluation)}/{media.name}"
    if not sample.rows:
        stem = clipped(media.name.rsplit("/", 1)[-1].rpartition(".")[0])
        return Told(number, stem.replace("_", " ") + sample.pseudo, f"Sample {kind} {stem}{sample.pseudo}", path)
    name = words.pictures.get(what, "")
    scores = dict(scores_of(sample, words))
    metric = main_metric(sample.evaluation, words)
    has_modes = any(what_of(other.name, words) == (what, m) for _, other in sample.media for m in words.modes)
    shown_mode = mode or (next(iter(words.modes), "") if has_modes else "")
    own = [words.modes[shown_mode]] if shown_mode else []
    if shown_mode in scores and own:
        own.append(f"{words.metrics.get(metric, metric)} {scores[shown_mode]}")
    caption = ", ".join([name or kind, *own])
    of_mode = f", {words.modes[mode]}," if mode else ""
    head = f"{name[:1].upper()}{name[1:]}" if name else f"Sample {kind}"
    alt = f"{head}{of_mode} of {title_of(sample, texts_of(sample, words))}."
    if scores:
        each = ", ".join(f"{words.modes.get(m, clipped(m))} {value}".strip() for m, value in scores.items())
        title = words.metrics.get(metric, metric)
        alt += f" {title[:1].upper()}{title[1:]}: {each}."
    return Told(number, caption, alt, path)


def scores_of(sample: Sample, words: Words) -> Iterator[tuple[str, str]]:
    """(mode, value) of the main metric in each row of a sample that has one."""
    metric, usual = main_metric(sample.evaluation, words), next(iter(words.modes), "")
    for row in sample.rows:
        value = as_number(row.get(metric)) if metric else None
        if value is not None:
            yield row.get("mode") or usual, f"{value:.2f}"

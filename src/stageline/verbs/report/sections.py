"""The parts of the report that describe the run: head, failures, stages, curves, lineage, environment, config."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from stageline.checkpoint.layout import CheckpointRef
from stageline.data.quarantine import QUARANTINE
from stageline.telemetry import FailureRecord
from stageline.verbs.report.curves import stage_curves
from stageline.verbs.report.html import Child, Markup, count, fold, link, number, plain, size, table, tag
from stageline.verbs.report.lineage import Edge, Node, Outcome, lineage_graph
from stageline.verbs.report.measurements import PSEUDO, is_pseudo
from stageline.verbs.report.record import RunRecord, mapping
from stageline.verbs.report.status import declared_stages, run_status, sessions, stage_status, taken_stages, when
from stageline.verbs.report.timeline import timeline

Json = Mapping[str, Any]
SHORT = 12
"""Hex digits of a digest that are shown; the whole of it is in the element's title."""


def pill(state: str, word: str) -> Markup:
    """A state as a coloured word."""
    return tag("span", word, class_=f"state {state}")


def short(digest: str) -> Markup:
    """The head of a digest, the whole in its title."""
    return tag("code", digest[:SHORT], title=digest)


def head(record: RunRecord) -> Markup:
    """Name, status in words, what and when."""
    status = run_status(record)
    times = sessions(record)
    facts: list[tuple[str, Child]] = [
        ("family", str(record.run.get("family", "unknown"))),
        ("stages", ", ".join(declared_stages(record)) or "none"),
        ("lies at", tag("code", record.uri)),
    ]
    if record.run.get("created"):
        facts.append(("run claimed", str(record.run["created"]).replace("T", " ").replace("+00:00", " UTC")))
    if times:
        facts.append(("first event", when(min(s.start for s in times))))
        facts.append(("last event", when(max(s.end for s in times))))
    listed = [[tag("dt", name), tag("dd", value)] for name, value in facts]
    title = tag("h1", record.name, " ", pill(status.state, status.word))
    lines = [tag("p", line, class_="lead") for line in (status.sentence, headline(record)) if line]
    return tag("header", title, lines, tag("dl", listed, class_="facts"), class_="top")


def headline(record: RunRecord) -> str:
    """The family's sentence about its newest stage's evaluation; "" where one of its metrics has no value."""
    names = re.findall(r"{(\w+)}", record.words.headline)
    for evaluation in record.evaluations if len(record.evaluations) == 1 else ():
        metrics = evaluation.metrics.get("metrics")
        values = [metrics.get(name) for name in names] if isinstance(metrics, Mapping) else []
        if names and len(values) == len(names) and all(isinstance(value, int | float) for value in values):
            said = record.words.headline.format(**{n: f"{v:.4g}" for n, v in zip(names, values, strict=True)})
            return f"{said} The labels are {PSEUDO}-labels." if is_pseudo(evaluation.metrics) else said
    return ""


def failures(record: RunRecord) -> list[Child]:
    """Every failure record in words, and files that could not be read."""
    found = [(f"Stage {s.name}", s.failure) for s in record.stages if s.failure is not None]
    if record.failure is not None and not any(is_told(record.failure, failure) for _, failure in found):
        found.insert(0, ("This run", record.failure))
    boxes: list[Child] = [failure_box(name, failure) for name, failure in found]
    if record.unreadable:
        lines = tag("ul", [tag("li", line) for line in record.unreadable])
        boxes.append(tag("div", tag("p", tag("strong", "Not everything could be read.")), lines, class_="box warn"))
    return boxes


def is_told(whole: FailureRecord, part: FailureRecord) -> bool:
    """Whether the run's failure says no more than a stage's: the same sentence, or both were stopped."""
    return part.sentence in whole.sentence or (whole.is_interruption and part.is_interruption)


def failure_box(name: str, failure: FailureRecord) -> Markup:
    """One failure: what happened, what to do, whether to mend it or to try again. name: of the stage or run."""
    again = failure.is_interruption
    meaning = "try again: the same command continues" if again else "fix it first: trying again would end the same way"
    kinds = [word for word in (failure.kind, failure.code) if word not in ("", "interrupted")]
    said = f" ({', '.join(kinds)})" if kinds else ""
    lines: list[Child] = [
        tag("p", tag("strong", f"{name} {'was interrupted' if again else 'failed'}{said}.")),
        tag("p", failure.sentence),
    ]
    if failure.remedy:
        lines.append(tag("p", tag("strong", "What to do: "), failure.remedy))
    where = f" on rank {failure.rank}" if failure.rank else ""
    where += f" in pod {failure.pod}" if failure.pod else ""
    time = when(failure.time or None)
    lines.append(tag("p", f"Exit code {failure.exit_code}{where} ({meaning}); {time}.", class_="quiet"))
    if failure.log_tail:
        title = f"the end of its log ({count(len(failure.log_tail), 'line')})"
        lines.append(fold(title, tag("pre", "\n".join(failure.log_tail))))
    return tag("div", lines, class_=f"box {'warn' if again else 'bad'}", role="alert" if not again else None)


def stages_part(record: RunRecord) -> list[Child]:
    """Timeline and one line per stage."""
    rows: list[list[Child]] = []
    for stage in record.stages:
        status = stage_status(stage)
        ref = stage.best or stage.last
        rows.append(
            [
                stage.name,
                pill(status.state, status.word),
                f"{stage.last.metadata.step} of {stage.last.metadata.steps}" if stage.last else "",
                parameters(stage.last.metadata.trained) if stage.last else "",
                parameters(stage.last.metadata.frozen) if stage.last else "",
                best_value(stage.last),
                [str(ref.name), " ", short(ref.digest)] if ref else "",
            ]
        )
    started = {stage.name.split("/")[0] for stage in record.stages}
    taken = taken_stages(record)
    for name in declared_stages(record):
        if name in taken:
            rows.append([name, pill("good", "from another run"), *[""] * 4, taken[name]])
        elif name not in started:
            rows.append([name, pill("idle", "not started"), *[""] * 5])
    titles = ["stage", "state", "steps", "trained parameters", "frozen", "best", "checkpoint"]
    parts: list[Child] = [timeline(sessions(record))]
    if rows:
        parts.append(table(titles, rows, caption="Stages of this run", class_="wide"))
    parts.append(plan_table(record.plan))
    return parts


def data_part(data: Json) -> list[Child]:
    """What was read of each split, one column per split, and what to look at."""
    if not data:
        return []
    found = {name: mapping(facts) for name, facts in data.items()}
    told = {name: {str(words): str(text) for words, text in facts.get("told", ())} for name, facts in found.items()}
    names = dict.fromkeys(words for facts in told.values() for words in facts)
    rows: list[list[Child]] = [[words, *(facts.get(words, "") for facts in told.values())] for words in names]
    boxes = [
        tag("p", f"{name}: {text}", class_="box warn")
        for name, facts in found.items()
        for text in facts.get("warnings", ())
    ]
    return [*boxes, table(["", *told], rows, caption="What was read")]


def quarantine_part(lists: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Child]:
    """Rows of the sources that could not be used: how many of each class, and the list beside the report."""
    if not lists:
        return []
    rows: list[list[Child]] = []
    for name, listed in lists.items():
        kinds = [row.get("class") or "?" for row in listed]
        told = ", ".join(f"{kind} {kinds.count(kind)}" for kind in sorted(set(kinds)))
        file = f"{QUARANTINE}/{name}.csv"
        rows.append([name, number(len(listed)), told, link(file)])
    return [table(["split", "rows", "classes", "list"], rows, caption="Rows that could not be used and were set aside")]


def parameters(groups: Mapping[str, Any]) -> Markup:
    """The sum over groups, the groups in the title."""
    total = sum(group.parameters for group in groups.values())
    return tag("span", number(total), title=", ".join(f"{k} {g.parameters}" for k, g in groups.items()) or None)


def best_value(ref: CheckpointRef | None) -> Child:
    """The best value of the declared metric and where it was."""
    best = ref.metadata.best if ref else None
    if best is None:
        return ""
    better = "higher" if best.direction == "max" else "lower"
    return tag("span", f"{best.metric} ", number(best.value), f" at step {best.step}", title=f"{better} is better")


def plan_table(plan: Json) -> Markup | None:
    """What the plan said before the run began."""
    items = plan.get("items")
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        return None
    rows: list[list[Child]] = []
    for item in items:
        reasons = item.get("reasons")
        lines = [tag("div", str(reason)) for reason in reasons] if isinstance(reasons, list) else []
        name = item.get("name") or item.get("stage") or item.get("step") or "?"
        rows.append([str(name), str(item.get("action", "?")), lines])
    return fold("the plan this run began with", table(["part", "action", "why"], rows, caption="The plan"))


def curves_part(record: RunRecord) -> list[Child]:
    """The curves of every stage."""
    parts: list[Child] = []
    for stage in record.stages:
        best = stage.last.metadata.best if stage.last else None
        parts.append(tag("h3", f"Stage {stage.name}"))
        parts.append(stage_curves(stage.name, stage.events, best.metric if best else ""))
    return parts


def lineage_part(record: RunRecord) -> list[Child]:
    """The graph of checkpoints and the files of each."""
    nodes: dict[str, Node] = {}
    own: dict[str, CheckpointRef] = {}
    for stage in record.stages:
        for ref in stage.committed:
            own[ref.digest] = ref
    queue = [ref for stage in record.stages for ref in (stage.best, stage.last) if ref is not None]
    wanted: dict[str, CheckpointRef] = {}
    while queue:
        ref = queue.pop(0)
        if ref.digest not in wanted:
            wanted[ref.digest] = ref
            queue += [own[p.digest] for p in ref.metadata.parents.values() if p.digest in own]
    if not wanted:
        return []
    edges: list[Edge] = []
    for digest, ref in wanted.items():
        meta = ref.metadata
        title = f"{meta.stage} · step {meta.step}" + (" · final" if meta.final else "")
        nodes[digest] = Node(digest, title, (f"digest {digest[:SHORT]}", f"content {ref.content[:SHORT]}"))
        for role, parent in meta.parents.items():
            if parent.digest not in wanted:
                lines = (f"digest {parent.digest[:SHORT]}", f"content {parent.content[:SHORT]}")
                nodes[parent.digest] = Node(parent.digest, f"{parent.stage} · step {parent.step}", lines, outside=True)
            edges.append(Edge(parent.digest, digest, role, parent.weights, outcomes(parent.sections)))
    facts = [checkpoint_facts(ref) for ref in wanted.values()]
    return [lineage_graph(list(nodes.values()), edges), *facts]


def outcomes(sections: Sequence[Json]) -> tuple[Outcome, ...]:
    """What the metadata say became of each section."""
    return tuple(
        Outcome(str(s.get("section", "?")), str(s.get("outcome", "?")), str(s.get("reason", ""))) for s in sections
    )


def checkpoint_facts(ref: CheckpointRef) -> Markup:
    """One checkpoint's files and what its family says about it."""
    meta = ref.metadata
    files: list[list[Child]] = [
        [name, size(record.bytes), short(record.sha256)] for name, record in sorted(meta.files.items())
    ]
    facts: list[list[Child]] = [[name, plain(value)] for name, value in sorted(meta.facts.items())]
    timing: list[list[Child]] = [[name, [number(value), " s"]] for name, value in sorted(meta.timing.items())]
    return fold(
        f"{meta.stage} at step {meta.step}: files, facts, times",
        tag("p", tag("code", f"{ref.uri}@sha256:{ref.digest}")),
        table(["file", "size", "SHA-256"], files, caption="Files"),
        table(["fact", "value"], facts, caption="What the family says about it") if facts else None,
        table(["what", "time"], timing, caption="Times measured when it was saved") if timing else None,
    )


def environment_part(record: RunRecord) -> list[Child]:
    """Versions, machine, image."""
    rows: dict[str, Any] = {}
    for stage in record.stages:
        if stage.last:
            rows |= stage.last.metadata.environment
    versions = record.run.get("versions")
    if isinstance(versions, Mapping):
        rows |= versions
    if record.run.get("image"):
        rows["image"] = record.run["image"]
    if not rows:
        return []
    listed: list[list[Child]] = [[name, plain(value)] for name, value in sorted(rows.items())]
    return [table(["what", "value"], listed, caption="Environment")]


def config_part(record: RunRecord) -> list[Child]:
    """Identity and the resolved config of each stage."""
    parts: list[Child] = []
    identity = record.run.get("identity")
    if isinstance(identity, Mapping):
        rows: list[list[Child]] = [[name, plain(value)] for name, value in sorted(identity.items())]
        mark = record.run.get("fingerprint", "")
        title = f"identity of the run ({len(rows)} fields, fingerprint {str(mark)[:SHORT]})"
        parts.append(fold(title, table(["key", "value"], rows, caption="What makes this run this run")))
    for stage in record.stages:
        if stage.config:
            parts.append(fold(f"resolved config of stage {stage.name}", tag("pre", stage.config)))
    return parts


def reproduce_part(record: RunRecord) -> list[Child]:
    """The command, as it was given."""
    command = record.run.get("command") or next(
        (s.last.metadata.command for s in record.stages if s.last and s.last.metadata.command), ""
    )
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    version = record.run.get("versions", {})
    parts: list[Child] = []
    if command:
        parts.append(tag("pre", re.sub(r"^\S*/(?=stageline\b)", "", str(command))))
    else:
        parts.append(tag("p", "The command was not recorded; the resolved config below runs the same.", class_="quiet"))
    if isinstance(version, Mapping) and version.get("stageline"):
        parts.append(tag("p", f"With stageline {version['stageline']}; all versions stand under Environment."))
    digests: list[list[Child]] = [
        [stage.name, tag("code", stage.last.metadata.stage_fingerprint), tag("code", stage.last.metadata.data_digest)]
        for stage in record.stages
        if stage.last
    ]
    if digests:
        titles = ["stage", "stage fingerprint", "data digest"]
        parts.append(fold("what has to agree", table(titles, digests, caption="Equal fingerprints give equal results")))
    return parts

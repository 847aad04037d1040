"""From the ends of ranks to the end of a pod: one failure record, whose exit code tells "fix it" from "try again".

A rank's own record counts first. Where one died without (a signal, an import that fails), its status says what it can.
Of several, the first cause decides, as `telemetry.first_cause` orders them: a fault of this node's comes before the
peers it took along, and nodes that only lost a peer say so (138), so that the faulty pod alone ends the job for good.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stageline.errors import (
    EXIT_FAULT,
    DeadlineError,
    InterruptedRunError,
    OutOfMemoryError,
    PeerLostError,
    StagelineError,
)
from stageline.pod.program import ProgramEnd, RankEnd
from stageline.telemetry import FailureRecord, first_cause, read_failures

RENDEZVOUS = re.compile(r"(?i)rendezvous|tcpstore|dist(network|store)error|getaddrinfo|name or service not known")
"""Words of an agent that did not find its peers."""
LOST = re.compile(
    r"(?i)(?!.*unable to (find|resolve) address)"
    r".*(gloo|nccl|processgroup|tcpstore|dist(network|store|backend)error|connection (closed|reset) by peer)",
    re.DOTALL,
)
"""Words of a collective that failed, in an error that nobody turned into PeerLostError; not of a wrong interface."""
NCCL_ABORT = re.compile(r"(?i)watchdog caught collective|nccl.*(timeout|timed out|abort|remote process exited)")
KILLED = re.compile(r"(?i)killed by signal: killed|signal 9|sigkill")
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGABRT}
"""Signals by which a program ends itself: they would come again. 128 + n would say "try again"."""


def judge(ended: ProgramEnd, records: Path, *, memory_ran_out: bool, world_size: int = 1) -> FailureRecord | None:
    """The failure record of this pod, None for success. records: folder of the ranks' own."""
    own = read_records(records)
    if ended.ranks and all(end.returncode == 0 for end in ended.ranks):
        return None
    if memory_ran_out and ended.returncode == -signal.SIGKILL:  # torchrun itself was taken, or the only rank
        return _out_of_memory(f"{'torchrun' if world_size > 1 else 'the program'} was", ended)
    found = [judge_rank(end, own.get(end.rank), ended, memory_ran_out=memory_ran_out) for end in ended.ranks]
    seen = {end.rank for end in ended.ranks}
    found += [record for rank, record in own.items() if rank not in seen]
    known = [as_lost_peer(record) if world_size > 1 else record for record in found if record is not None]
    if not known:
        if ended.returncode == 0 and ended.ranks:
            return None
        known = [_judge_program(ended)]
    record = first_cause(known)
    assert record is not None
    if ended.late and record.is_interruption:
        return _record(
            DeadlineError(
                f"the deadline came before the stage was finished: {record.sentence}",
                remedy="submit it again with a later deadline; it continues from the last checkpoint",
            ),
            ended,
        )
    return replace(record, log_tail=record.log_tail or tuple(ended.last_lines))


def judge_rank(
    end: RankEnd, own: FailureRecord | None, ended: ProgramEnd, *, memory_ran_out: bool
) -> FailureRecord | None:
    """The record of one rank, None for success. own: what it left itself."""
    if end.returncode == 0:
        return None
    signum = _signal_of(end.returncode)
    loader_killed = own is not None and not own.is_interruption and KILLED.search(own.sentence)
    if memory_ran_out and (signum == signal.SIGKILL or loader_killed):
        record = _out_of_memory(f"rank {end.rank} or one of its processes was", ended)
        return replace(record, rank=end.rank, time=end.time)
    if own is not None:
        return own
    if signum:
        return _killed(end, signum, ended)
    assert end.returncode is not None
    last = last_line(ended.tail, end.rank)
    sentence = f"rank {end.rank} ended with exit code {end.returncode} and left no record; its last line: {last}"
    return _plain(end, "fault", sentence, "see the log of this pod", end.returncode)


def _signal_of(returncode: int | None) -> int:
    """The signal a status stands for, 0 for none. None: whoever would have seen the end was killed with it."""
    if returncode is None:
        return int(signal.SIGKILL)
    return -returncode if returncode < 0 else 0


def _killed(end: RankEnd, signum: int, ended: ProgramEnd) -> FailureRecord:
    known = signum in {item.value for item in signal.Signals}
    name = signal.Signals(signum).name if known else f"signal {signum}"
    if signum == signal.SIGABRT and NCCL_ABORT.search("\n".join(ended.tail)):
        sentence = f"rank {end.rank} was ended by NCCL ({name}): another rank went away or did not answer"
        remedy = "see the record of the rank that ended first"
        return _plain(end, PeerLostError.kind, sentence, remedy, PeerLostError.exit_code)
    if known and signal.Signals(signum) in CRASHES:
        sentence = f"rank {end.rank} crashed with {name}; its last line: {last_line(ended.tail, end.rank)}"
        remedy = (
            f"a fault in native code, which would come again: exit code {EXIT_FAULT} instead of {128 + signum}, which "
            "would start it again; look at its last lines, versions of driver and libraries, and the node's kernel log"
        )
        return _plain(end, "crashed", sentence, remedy, EXIT_FAULT)
    if signum == signal.SIGTERM and not (ended.asked or ended.late):
        sentence = f"rank {end.rank} was stopped because another rank had ended ({name})"
        return _plain(end, PeerLostError.kind, sentence, "see the record of that rank", PeerLostError.exit_code)
    if ended.asked or ended.late:
        why = ended.asked or "the deadline"
        sentence = f"rank {end.rank} was stopped by {why} before it could commit ({name})"
        return _plain(end, "interrupted", sentence, "start it again to continue from the last checkpoint", 128 + signum)
    sentence = f"rank {end.rank} was killed from outside ({name}); the memory of its container had not run out"
    remedy = "it is started again from the last checkpoint; if it comes again, look at the node's kernel log and events"
    return _plain(end, "killed", sentence, remedy, 128 + signum)


def _out_of_memory(who: str, ended: ProgramEnd) -> FailureRecord:
    error = OutOfMemoryError(
        f"{who} killed by the kernel: the memory of its container ran out",
        remedy="raise cluster.resources.limits.memory, or lower trainer.batch_size or trainer.num_workers",
    )
    return _record(error, ended)


def _judge_program(ended: ProgramEnd) -> FailureRecord:
    """The record of a program none of whose ranks says anything: mostly torchrun before it started any."""
    if ended.asked or ended.late:
        why = ended.asked or "the deadline"
        stopped = InterruptedRunError(f"stopped by {why} before the ranks began", remedy="start it again")
        return _record(stopped, ended)
    text = "\n".join(ended.tail)
    if is_rendezvous_failure(ended):
        return _record(
            PeerLostError(
                f"the ranks did not find each other: {last_line(ended.tail, words=RENDEZVOUS)}",
                remedy="it is started again; are all pods of the job running, and can they reach worker 0?",
            ),
            ended,
        )
    if ended.returncode < 0 and not ended.hung:
        killed = RankEnd(0, ended.returncode, 0.0)
        record = _killed(killed, -ended.returncode, ended)
        return replace(record, sentence=f"torchrun was killed ({-ended.returncode})")
    if ended.hung or LOST.match(text):
        lost = PeerLostError("torchrun lost its peers and did not end by itself", remedy="it is started again")
        return _record(lost, ended)
    error = StagelineError(
        f"torchrun ended with {ended.returncode} before it started a rank; its last line: {last_line(ended.tail)}",
        remedy="see the log of this pod",
    )
    return _record(error, ended)


def is_rendezvous_failure(ended: ProgramEnd) -> bool:
    """Whether torchrun gave up before it had started a rank, for want of its peers: worth another try in this pod."""
    wanted = not ended.ranks and ended.returncode != 0 and not ended.asked and not ended.late
    return wanted and bool(RENDEZVOUS.search("\n".join(ended.tail)))


def as_lost_peer(record: FailureRecord) -> FailureRecord:
    """A fault without a kind whose words are those of a failed collective is a lost peer."""
    if record.kind != "fault" or not LOST.match(record.sentence):
        return record
    return replace(record, kind=PeerLostError.kind, exit_code=PeerLostError.exit_code)


def read_records(folder: Path) -> dict[int, FailureRecord]:
    """The ranks' own records, by rank; one that is torn counts as none: how its rank ended tells more."""
    return {record.rank: record for record in read_failures(folder)[0]}


def last_line(tail: Sequence[str], rank: int | None = None, words: re.Pattern[str] | None = None) -> str:
    """The last line that says something: of a rank, or one with such words, where there is any."""
    spoken = [line for line in tail if line.strip()]
    prefix = f"[rank {rank}] "
    chosen = [line for line in spoken if words.search(line)] if words else [x for x in spoken if x.startswith(prefix)]
    line = (chosen or spoken or ["it printed nothing"])[-1]
    return line.removeprefix(prefix)[:300]


def _plain(end: RankEnd, kind: str, sentence: str, remedy: str, exit_code: int) -> FailureRecord:
    return FailureRecord(kind, sentence, remedy, exit_code, rank=end.rank, time=end.time)


def _record(error: StagelineError, ended: ProgramEnd) -> FailureRecord:
    return FailureRecord.of(error, log_tail=ended.last_lines)

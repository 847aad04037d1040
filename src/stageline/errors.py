"""Everything that can go wrong for a user, as one tree of exceptions.

An error says what was found and where, what was expected and what to do. Its exit code tells "fix it" (1-127) from
"try again" (128-255), which is what a PyTorchJob's `ExitCode` restart policy reads. The command line prints the
message without a traceback; a stage process writes it to its failure record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from stageline.printing import escaped, one_line, quoted_block, remedy_lines

EXIT_FAULT = 1
"""An error without a kind of its own: a fault in our code."""
EXIT_CTRL_C = 130
"""128 + SIGINT, as shells say it."""
EXIT_INTERRUPTED = 143
"""128 + SIGTERM: asked to stop, committed a checkpoint, wants to be started again."""


class StagelineError(Exception):
    """A fault with a sentence for its reader. What others wrote in its texts is made visible (`printing`).

    message: what was found and where, and what was expected.
    remedy: what to do about it, one sentence; shown on a line of its own.
    code: short stable name of the fault (`E_RANGE`), where a specification names one.
    """

    exit_code: ClassVar[int] = EXIT_FAULT
    kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, remedy: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = escaped(message)
        self.remedy = escaped(remedy)
        self.code = one_line(code)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """As it is shown: the message, whose own lines are indented, and the remedy last."""
        shown = quoted_block(f"{self.code}: {self.message}" if self.code else self.message)
        return [*shown, *remedy_lines(self.remedy)]


class ConfigError(StagelineError):
    """A config that is unknown, contradictory or out of range."""

    exit_code = 2
    kind = "config"


class DataError(StagelineError):
    """Data files that are missing, empty, corrupt or of the wrong size."""

    exit_code = 3
    kind = "data"


class CheckpointError(StagelineError):
    """A checkpoint that may not be used: uncommitted, damaged, foreign or incomplete."""

    exit_code = 4
    kind = "checkpoint"


class StoreError(StagelineError):
    """A store that refuses: no credentials, no bucket, no permission."""

    exit_code = 5
    kind = "store"


class PlanError(StagelineError):
    """A run or stage that is blocked: another identity under the name, a parent that is missing."""

    exit_code = 6
    kind = "plan"


class TrainingError(StagelineError):
    """Training that cannot go on: loss not finite too often, a schedule that does not fit."""

    exit_code = 7
    kind = "training"


class OutOfMemoryError(StagelineError):
    """The device or the host ran out of memory; the remedy names the setting to change."""

    exit_code = 8
    kind = "out_of_memory"


class DiskFullError(StagelineError):
    """Not enough room for what is about to be written; nothing was written."""

    exit_code = 9
    kind = "disk_full"


class BusyError(StagelineError):
    """Somebody else holds the lease of this stage or took it over."""

    exit_code = 10
    kind = "busy"


class MissingPartError(StagelineError):
    """An optional part of the installation is needed here and absent."""

    exit_code = 11
    kind = "missing_part"


class ClusterError(StagelineError):
    """The Kubernetes API server refuses or lacks something: no permission, no namespace, no CRD, a quota, a webhook."""

    exit_code = 13
    kind = "cluster"


class DeadlineError(StagelineError):
    """A stage was not finished by its deadline."""

    exit_code = 14
    kind = "deadline"


class RestartBudgetError(StagelineError):
    """Pods were started again too often without a new committed checkpoint."""

    exit_code = 15
    kind = "restart_budget"


class PendingTimeoutError(StagelineError):
    """The pods of a stage were not all running within the time allowed."""

    exit_code = 16
    kind = "pending"


class DoctorError(StagelineError):
    """`stageline doctor` found something that is wrong; its lines say what."""

    exit_code = 17
    kind = "doctor"


class StepFailedError(StagelineError):
    """A process started by us failed; tells that process's own sentence, kind and exit code.

    exit_code: the process's own, so that the caller can pass it on.
    origin: kind of the process's failure, "" where it left no record.
    """

    kind = "step_failed"

    def __init__(self, message: str, *, exit_code: int, remedy: str = "", code: str = "", origin: str = "") -> None:
        super().__init__(message, remedy=remedy, code=code)
        self.exit_code = exit_code  # type: ignore[misc]  # of this error, not of its class
        self.kind = origin or self.kind  # type: ignore[misc]


class InterruptedRunError(StagelineError):
    """Stopped by SIGTERM or SIGINT after a checkpoint was committed: start it again to continue."""

    exit_code = EXIT_INTERRUPTED
    kind = "interrupted"


class CtrlCError(InterruptedRunError):
    """Stopped by Ctrl-C where there was no step to finish."""

    exit_code = EXIT_CTRL_C


class PeerLostError(StagelineError):
    """Another rank went away; this one did nothing wrong."""

    exit_code = 138
    kind = "peer_lost"


class StoreUnavailableError(StagelineError):
    """A store that did not answer; the same request may succeed later."""

    exit_code = 140
    kind = "store_unavailable"


class ClusterUnavailableError(StagelineError):
    """No Kubernetes API server answers; the same request may succeed later."""

    exit_code = 141
    kind = "cluster_unavailable"


class NodeLostError(StagelineError):
    """A node with a pod of the stage went silent."""

    exit_code = 142
    kind = "node_lost"


class Faults:
    """Collects the faults of one input so that all of them are reported at once.

    >>> faults = Faults(DataError, "data/train")
    >>> faults.add("a.png: empty file")
    >>> faults.raise_if_any()  # doctest: +SKIP
    """

    def __init__(self, error: type[StagelineError], what: str, remedy: str = "") -> None:
        self.error = error
        self.what = what
        self.remedy = remedy
        self.found: list[str] = []
        self.code = ""

    def add(self, fault: str, *, code: str = "") -> None:
        """Note one fault; the first code given becomes the error's."""
        self.found.append(escaped(fault).replace("\n", "\n    "))
        self.code = self.code or code

    def extend(self, faults: Iterable[str]) -> None:
        self.found.extend(faults)

    def raise_if_any(self) -> None:
        """Raise the error that lists every fault, or do nothing."""
        if not self.found:
            return
        lines = "\n".join(f"  - {fault}" for fault in self.found)
        count = f"{len(self.found)} fault{'s' if len(self.found) > 1 else ''}"
        raise self.error(f"{self.what}: {count}\n{lines}", remedy=self.remedy, code=self.code)


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The fields in which two flat mappings differ, one line each: `field: found → expected`."""
    lines = []
    for key in sorted({*found, *expected}):
        a, b = found.get(key, "absent"), expected.get(key, "absent")
        if a != b:
            lines.append(f"{key}: {a!r} -> {b!r}")
    return lines

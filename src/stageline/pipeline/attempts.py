"""What an attempt of a step leaves to the next one: an error that only a change mends is told again, not met again.

A pipeline can say how often KFP tries a step again, and not after which errors: to KFP every failure is 1. So the step
tells them apart. After an error of "try again" (exit codes from 128 on), or an end without a word, a retry does the
work and continues; after one of "fix it" it ends at once, with the same error, and does nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from stageline.config import is_sealed, seal
from stageline.config.bounds import read_json
from stageline.errors import StagelineError
from stageline.store import NotFoundError, Store
from stageline.telemetry import FailureRecord

RETRY_VARIABLE = "KFP_RETRY_INDEX"
"""KFP's own: which attempt of a step a pod is, from 0 on. Nowhere else is an attempt counted."""
NUM_RETRIES = 2
"""How often KFP tries a step again: enough for a node that goes and another that is full. Chosen here."""
LASTS_SECONDS = 600.0
"""How long an error is told again: KFP's own retries come within three minutes. Whoever retries by hand is later, or
has a new attempt 0, and the work is done. Chosen here."""


@dataclass(frozen=True)
class Attempts:
    """The attempts of one step in one KFP run.

    root: below which the run lies.  run, item: whose step it is.  asked: what its answer depends on, as a hash.
    kfp_run: id of KFP's run.  index: which attempt this one is, None where nobody counts.
    """

    root: Store
    run: str
    item: str
    asked: str
    kfp_run: str
    index: int | None

    @classmethod
    def of_this_pod(
        cls, root: Store, run: str, item: str, asked: str, kfp_run: str, variables: Mapping[str, str] = os.environ
    ) -> Attempts:
        """The one that this process is. variables: of its environment."""
        text = variables.get(RETRY_VARIABLE, "")
        return cls(root, run, item, asked, kfp_run, int(text) if text.isdecimal() else None)

    @property
    def _key(self) -> str:
        return f"runs/{self.run}/pipeline/attempts/{self.item}.json"

    def begin(self) -> None:
        """Raise the error of the attempt before, where only a change mends it. A first attempt knows of none."""
        if self.index is None:
            return
        if self.index == 0 or self.index > NUM_RETRIES:
            if self.root.exists(self._key):
                self.root.delete(self._key)
            return
        record = self._read()
        if record is not None:
            raise record.error()

    def _read(self) -> FailureRecord | None:
        try:
            plain = read_json(self.root.get(self._key))
            if not is_sealed(plain) or (plain.get("question"), plain.get("kfp_run")) != (self.asked, self.kfp_run):
                return None
            record = FailureRecord.from_json(plain.get("failure"))
        except (NotFoundError, ValueError):  # none, or half of one: the work is done
            return None
        fresh = 0 <= time.time() - record.time <= LASTS_SECONDS
        return record if fresh and not record.is_interruption else None

    def leave(self, error: BaseException) -> None:
        """Note the error for the next attempt, if only a change mends it; a store that refuses hides no error."""
        record = FailureRecord.of(error)
        if self.index is None or record.is_interruption:
            return
        plain = seal({"question": self.asked, "kfp_run": self.kfp_run, "failure": record.to_json()})
        with suppress(StagelineError):
            self.root.put(self._key, (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode())

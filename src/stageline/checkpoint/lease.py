"""The lease of a stage directory: one writer at a time, and a writer that lost it can't commit. Loads no torch.

`lease.json` is created conditionally, renewed by conditional replacement, and taken over only when it is expired, given
back, or its holder was a process of this machine that is dead. Expiry is read off the reader's clock: machines that
share a store have to agree about the time to within the lease's length. A pod that was killed gives nothing back: the
one that takes its place waits (`await_free`) until the lease has run out.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from stageline.config.bounds import read_json
from stageline.errors import BusyError, ConfigError, StagelineError
from stageline.store import NotFoundError, Store
from stageline.store.holder import is_dead, this_process

LEASE_NAME = "lease.json"
DEFAULT_TTL_SECONDS = 60.0
RENEWALS_PER_TTL = 3
WAIT_SECONDS = 0.5
"""Between two looks at a lease somebody waits for."""
WAIT_VARIABLE = "STAGELINE_LEASE_WAIT_SECONDS"
"""Environment variable: how long a stage waits for a lease that is held; unset or 0: not at all."""


class Leased(Protocol):
    """What one process at a time may write: a stage directory, a share of features. store: where its lease lies."""

    @property
    def store(self) -> Store: ...
    @property
    def uri(self) -> str: ...


def _is_free(plain: dict[str, Any]) -> bool:
    """Whether a lease may be taken over."""
    if plain["expires"] <= time.time():
        return True
    return is_dead(plain)


def _read(store: Store) -> tuple[dict[str, Any], str] | None:
    try:
        data, token = store.get_with_token(LEASE_NAME)
    except NotFoundError:
        return None
    try:
        plain = read_json(data)
        texts = all(isinstance(plain[name], str) for name in ("holder", "id", "host"))
        usable = texts and type(plain["pid"]) is int and "born" in plain and 0 <= plain["expires"] < math.inf
    except (ValueError, TypeError, KeyError):
        usable = False
    if not usable:
        raise BusyError(
            f"{store.uri}/{LEASE_NAME} is no lease", remedy="delete that file if no stage is running in this directory"
        )
    return plain, token


def held_by(stage_dir: Leased) -> str | None:
    """Who holds a running lease, or None."""
    found = _read(stage_dir.store)
    return None if found is None or _is_free(found[0]) else str(found[0]["holder"])


def lease_wait_seconds() -> float:
    """How long the environment wants a lease to be waited for; ConfigError where it says no number."""
    text = os.environ.get(WAIT_VARIABLE) or "0"
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{WAIT_VARIABLE}={text!r} is no number of seconds", remedy="unset it") from error


def await_free(
    stage_dir: Leased, limit_seconds: float, say: Callable[[str], None], is_stopped: Callable[[], bool]
) -> None:
    """Return once the lease can be taken, `limit_seconds` have passed, or there is a reason to stop.

    say: told once, where there is something to wait for. Takes nothing: whoever comes first still has it.
    """
    end, told = time.monotonic() + limit_seconds, False
    while limit_seconds > 0 and not is_stopped():
        found, left = _read(stage_dir.store), end - time.monotonic()
        if found is None or _is_free(found[0]) or left <= 0:
            return
        if not told:
            say(f"waiting up to {limit_seconds:.0f} s for the stage's lease: {_describe(found[0])}")
            told = True
        time.sleep(min(WAIT_SECONDS, left))


class StageLease:
    """A lease that is held. `check` before anything that only one writer may do; a context manager gives it back."""

    def __init__(self, stage_dir: Leased, holder: str, ttl_seconds: float) -> None:
        self.stage_dir = stage_dir
        self.holder = holder
        self.ttl_seconds = ttl_seconds
        self.id = uuid.uuid4().hex
        self._store_token = ""
        self._good_until = 0.0
        self._serial = 0
        self._lost = ""
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(
        cls,
        stage_dir: Leased,
        holder: str,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
        *,
        keep_renewed: bool = True,
    ) -> StageLease:
        """Take the lease; BusyError if somebody living holds it.

        holder: who we are, for people.  keep_renewed: renew it from a thread of its own until `release`.
        """
        self = cls(stage_dir, holder, ttl_seconds)
        start = time.monotonic()
        data = self._content(ttl_seconds)
        store = stage_dir.store
        if not store.create(LEASE_NAME, data):
            found = _read(store)
            # A creation whose answer got lost was repeated and found itself there.
            ours = found is not None and found[0]["id"] == self.id
            taken = found is not None and _is_free(found[0]) and store.replace(LEASE_NAME, data, found[1])
            if not ours and not taken:
                raise _busy(stage_dir, _read(store))
        self._note_written(start, ttl_seconds)
        if keep_renewed:
            self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
            self._thread.start()
        return self

    def _content(self, seconds: float) -> bytes:
        self._serial += 1
        plain = {
            "holder": self.holder,
            "id": self.id,
            "serial": self._serial,
            **this_process(),
            "expires": time.time() + seconds if seconds else 0.0,
            "ttl_seconds": self.ttl_seconds,
        }
        return (json.dumps(plain, indent=1) + "\n").encode()

    def renew(self) -> None:
        """Move the expiry; BusyError if the lease was lost."""
        with self._mutex:
            if self._lost:
                raise self._lost_error()
            self._renew(self.ttl_seconds)

    def _renew(self, seconds: float) -> None:
        start = time.monotonic()
        store = self.stage_dir.store
        if not store.replace(LEASE_NAME, self._content(seconds), self._store_token):
            found = _read(store)
            if found is None or found[0]["id"] != self.id:
                self._lost = f"taken over by {found[0]['holder']!r}" if found else "lease.json is gone"
                raise self._lost_error()
            # Our own write arrived but its answer did not: take its token and write once more.
            if not store.replace(LEASE_NAME, self._content(seconds), found[1]):
                self._lost = "taken over while it was renewed"
                raise self._lost_error()
        self._note_written(start, seconds)

    def _note_written(self, start: float, seconds: float) -> None:
        """Remember the token of what we just wrote, if it is still ours."""
        found = _read(self.stage_dir.store)
        if found is None or found[0]["id"] != self.id:
            self._lost = "taken over while it was written"
            raise self._lost_error()
        self._store_token = found[1]
        self._good_until = start + seconds

    def check(self) -> None:
        """Do nothing if the lease is ours, as the store says now, for at least half its length; else BusyError.

        A lease that expired while this process stood still, and that nobody took, is renewed.
        """
        with self._mutex:
            if self._lost:
                raise self._lost_error()
            found = _read(self.stage_dir.store)
            if found is None or found[0]["id"] != self.id:
                self._lost = f"taken over by {found[0]['holder']!r}" if found else "lease.json is gone"
                raise self._lost_error()
            if self._good_until - time.monotonic() < self.ttl_seconds / 2:
                self._renew(self.ttl_seconds)

    @property
    def is_lost(self) -> bool:
        """Whether this holder has found out that the lease is another's by now."""
        return bool(self._lost)

    def _lost_error(self) -> BusyError:
        return BusyError(
            f"the lease of {self.stage_dir.uri!r} was lost ({self._lost}): nothing is committed any more",
            remedy="another process writes this stage now; follow that one, or stop it and start again",
        )

    def _keep(self) -> None:
        while not self._ended.wait(self.ttl_seconds / RENEWALS_PER_TTL):
            try:
                self.renew()
            except BusyError:
                return
            except StagelineError:
                # The store may answer again before the lease expires; `check` refuses once it did.
                continue

    def release(self) -> None:
        """Give the lease back; a lease that was lost is left to its new holder."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._mutex:
            if self._lost:
                return
            self._lost = "given back"
            self.stage_dir.store.replace(LEASE_NAME, self._content(0.0), self._store_token)

    def __enter__(self) -> StageLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _describe(plain: dict[str, Any]) -> str:
    left = max(0.0, plain["expires"] - time.time())
    machine = plain["host"].split("/")[0]
    return f"{plain['holder']!r} (process {plain['pid']} on {machine!r}, for another {left:.0f} s unless renewed)"


def _busy(stage_dir: Leased, found: tuple[dict[str, Any], str] | None) -> BusyError:
    who = "another process"
    if found is not None:
        who = _describe(found[0])
    return BusyError(
        f"{stage_dir.uri!r} is being written by {who}",
        remedy="wait for it or stop it; two runs need two names: run=<new name>",
    )

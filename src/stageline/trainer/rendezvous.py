"""How the nodes of a job find each other: a rendezvous of torchrun that unpickles nothing and knows who is who.

Node 0 holds a key-value store (torch's TCPStore) that listens on one address. Every node claims `member/<rank>` there
by its name, and node 0 writes the list of them as JSON once all have come. Whoever finds another name at its rank, or a
list that was written without it, has met a gang from before: it closes the connection, waits and tries again until its
time is over. torch's `c10d` unpickles what it finds in the store, and a newcomer to an old store of its `static` hangs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import TypeVar

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistError
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from stageline.config.bounds import read_json
from stageline.errors import ConfigError, Faults

T = TypeVar("T")
log = logging.getLogger(__name__)

BACKEND = "stageline"
"""The name of the entry point, and of the backend for torchrun."""
AGAIN_SECONDS = 1.0
"""Between two looks at what is not there yet."""
TRY_SECONDS = 10.0
"""How long one connection is waited on: node 0 may be another pod by then, and a dead one may never say so."""
STORE_SECONDS = 60.0
"""For what the agents of a gang read from each other's keys, which are written at once."""
LONGEST_LIST = 2**20
LIST = "members"
ATTEMPT = "looks for its peers"
_NAME = re.compile(r"[!-~]{1,200}")


class _NotYetError(Exception):
    """Why a gang can't be joined now, and may be in a while."""


@dataclass(frozen=True)
class Meeting:
    """What a node is told.

    host, port: where node 0's store is.  bind: the one address node 0 listens on.
    job: the rendezvous id; others at the same store are not met.
    rank, nodes: which of the nodes this is.  member: its name; two attempts of a node have different ones.
    seconds: how long it may wait for the others.
    """

    host: str
    port: int
    bind: str
    job: str
    rank: int
    nodes: int
    member: str
    seconds: float


def make_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """The handler of a node; ConfigError with everything that cannot be meant."""
    return StaticRendezvous(read_meeting(parameters))


def read_meeting(parameters: RendezvousParameters) -> Meeting:
    """What torchrun's options say; ConfigError with everything in them that cannot be meant.

    Of `--rdzv-conf`: `rank` of this node (may be left out where it is the only one), `member` (default: a random one),
    `bind` (default: the host of the endpoint), `timeout` in seconds.
    """
    faults = Faults(
        ConfigError,
        f"a rendezvous of the kind {BACKEND!r}",
        "torchrun --nnodes 2 --rdzv-backend stageline --rdzv-endpoint HOST:PORT --rdzv-id JOB --rdzv-conf rank=0",
    )
    nodes = parameters.max_nodes
    if parameters.min_nodes != nodes:
        faults.add(f"--nnodes {parameters.min_nodes}:{nodes}: the number of nodes is fixed here")
    host, _, port = parameters.endpoint.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        faults.add(f"--rdzv-endpoint {parameters.endpoint!r}: expected HOST:PORT")
    elif int(port) == 0 and nodes > 1:
        faults.add(f"--rdzv-endpoint {parameters.endpoint!r}: nobody else can know port 0")
    rank = parameters.get("rank", None if nodes > 1 else 0)
    if not str(rank).isdecimal() or int(str(rank)) >= nodes:
        faults.add(f"--rdzv-conf rank={rank}: expected a number below {nodes}")
    name = str(parameters.get("member", "") or uuid.uuid4())
    if not _NAME.fullmatch(name):
        faults.add(f"--rdzv-conf member={name!r}: expected 1 to 200 printable characters without spaces")
    bind = str(parameters.get("bind", "") or host)
    if _is_everywhere(bind):
        faults.add(f"a store at {bind!r} would listen on every address of this machine: name one of them")
    seconds = parameters.get("timeout", 900)
    if not isinstance(seconds, (int, float, str)) or not re.fullmatch(r"\d+(\.\d+)?", str(seconds)):
        faults.add(f"--rdzv-conf timeout={seconds!r}: expected seconds")
    faults.raise_if_any()
    member = f"{name}/{uuid.uuid4().hex[:12]}"
    return Meeting(host, int(port), bind, parameters.run_id, int(rank), nodes, member, float(seconds))


def _is_everywhere(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


class StaticRendezvous(RendezvousHandler):
    """The place of one node in its gang; nodes neither come nor go after it has formed."""

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting
        self._store: Store | None = None
        self._looked_at = 0.0
        self._closed = False
        self._gang_id = meeting.job

    def next_rendezvous(self) -> RendezvousInfo:
        """Return when all nodes are there; RendezvousTimeoutError, which says why, when the time is over."""
        end = time.monotonic() + self.meeting.seconds
        said = ""
        while not self._closed:
            try:
                self._store = None  # closes what the try before left
                return self._hold(end) if self.meeting.rank == 0 else self._join(end)
            except _NotYetError as error:
                reason = str(error)
            if time.monotonic() + AGAIN_SECONDS >= end:
                raise RendezvousTimeoutError(
                    f"worker {self.meeting.rank} of {self.meeting.job!r} waited {self.meeting.seconds:.0f} s for its "
                    f"peers: {reason}"
                )
            if reason != said:
                log.warning("not yet: %s", reason)
                said = reason
            time.sleep(AGAIN_SECONDS)
        raise RendezvousClosedError(f"the rendezvous of {self.meeting.job!r} is closed here")

    def _hold(self, end: float) -> RendezvousInfo:
        """Node 0: a store of its own, and the list once all have come."""
        told = self.meeting
        listening = _listen(told.bind, told.port)
        address, port = listening.getsockname()[:2]
        store = TCPStore(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=STORE_SECONDS),
            master_listen_fd=listening.detach(),  # torch's own socket listens on every address
        )
        self._store = store
        shared = _shared(store, told.job)
        _claim(shared, told)
        keys = [_key(rank) for rank in range(told.nodes)]
        while missing := [rank for rank, key in enumerate(keys) if not shared.check([key])]:
            if time.monotonic() + AGAIN_SECONDS >= end:
                names = ", ".join(f"worker {rank}" for rank in missing[:5])
                raise _NotYetError(f"{names}{' …' if missing[5:] else ''} did not come to {address}:{port}")
            time.sleep(min(AGAIN_SECONDS, 0.05 * told.nodes))
        members = [told.member, *(_text(shared.get(key)) for key in keys[1:])]
        shared.set(LIST, json.dumps(members))
        return self._gang(store, members, address, port)

    def _join(self, end: float) -> RendezvousInfo:
        """Any other node: as a client, on connections that are given up after a while."""
        told = self.meeting
        address = _find(told.host, told.port)

        def attempt() -> tuple[Store, list[str]]:
            try:
                store = TCPStore(
                    address,
                    told.port,
                    is_master=False,
                    wait_for_workers=False,
                    timeout=timedelta(seconds=TRY_SECONDS),  # also of one that is given up: its thread ends soon
                )
                store.set_timeout(timedelta(seconds=STORE_SECONDS))
                return store, _take_part(_shared(store, told.job), told, min(TRY_SECONDS, end - time.monotonic()))
            except DistError as error:
                raise _NotYetError(f"worker 0 at {address}:{told.port} went away: {_first_line(error)}") from error

        store, members = _bounded(attempt, 2 * TRY_SECONDS, f"{address}:{told.port} does not answer as a store does")
        self._store = store
        return self._gang(store, members, address, told.port)

    def _gang(self, store: Store, members: list[str], address: str, port: int) -> RendezvousInfo:
        """What torchrun is told; its agents write below a name that no other gang has.

        address, port: for the ranks, which join the same store: not a name that leads to another pod a moment later.
        """
        gang = hashlib.sha256(json.dumps(members).encode()).hexdigest()[:16]
        self._gang_id = f"{self.meeting.job}-{gang}"  # a part of file names, too
        own = PrefixStore(f"{BACKEND}/{self._gang_id}", store)
        return RendezvousInfo(own, self.meeting.rank, self.meeting.nodes, RendezvousStoreInfo(address, port))

    def num_nodes_waiting(self) -> int:
        """Nobody ever waits; torchrun asks while its ranks run, and learns here that worker 0 has gone."""
        now = time.monotonic()
        if self._store is not None and self.meeting.rank > 0 and now - self._looked_at > AGAIN_SECONDS:
            self._looked_at = now
            try:
                self._store.check([LIST])
            except DistError as error:
                raise RendezvousConnectionError(
                    f"the store of worker 0 at {self.meeting.host}:{self.meeting.port} is gone: {_first_line(error)}"
                ) from error
        return 0

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Ranks are clients of node 0's store: one that rank 0 made itself would listen on every address."""
        return True

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        """This node looks for peers no more; it has nothing to say to the others, which would wait for it in vain."""
        self._closed = True

    def get_run_id(self) -> str:
        """The job, and once it has formed the gang: the same for all its ranks, and for those of no other start."""
        return self._gang_id

    def shutdown(self) -> bool:
        self._store = None
        return True


def _shared(store: Store, job: str) -> PrefixStore:
    return PrefixStore(f"{BACKEND}/{job}", store)


def _key(rank: int) -> str:
    return f"member/{rank}"


def _claim(shared: Store, told: Meeting) -> None:
    """Take the place of this rank; _NotYetError where another node has it.

    A node's own earlier attempt, which ended before the gang had formed, is replaced.
    """
    held = _text(shared.compare_set(_key(told.rank), "", told.member))
    if held != told.member and held.rpartition("/")[0] == told.member.rpartition("/")[0]:
        held = _text(shared.compare_set(_key(told.rank), held, told.member))
    if held != told.member:
        raise _NotYetError(
            f"worker {told.rank} of the gang at {told.host}:{told.port} is {held.rpartition('/')[0]!r} and not "
            f"{told.member.rpartition('/')[0]!r}: it is one from before, which has to end first"
        )


def _take_part(shared: Store, told: Meeting, seconds: float) -> list[str]:
    """Claim a place and wait for the list; the names of all members by rank."""
    if not shared.check([LIST]):
        _claim(shared, told)
    end = time.monotonic() + seconds
    while not shared.check([LIST]):
        if time.monotonic() >= end:
            raise _NotYetError("worker 0 is there, others are not")
        time.sleep(min(AGAIN_SECONDS, 0.05 * told.nodes))
    try:
        members = read_json(bytes(shared.get(LIST)), max_bytes=LONGEST_LIST)
    except ValueError as error:
        raise _NotYetError(f"the list of members at {told.host}:{told.port} can't be read: {error}") from error
    if not isinstance(members, list) or not all(isinstance(name, str) for name in members):
        raise _NotYetError(f"the list of members at {told.host}:{told.port} is no list of names")
    if len(members) != told.nodes or members[told.rank] != told.member:
        raise _NotYetError(
            f"the gang at {told.host}:{told.port} has formed without this worker {told.rank}: it is one from before, "
            "which has to end first"
        )
    return members


def _text(value: bytes) -> str:
    """A name as it was found; what is none is shown shortened."""
    text = bytes(value[:1000]).decode("ascii", errors="backslashreplace")
    return text if _NAME.fullmatch(text) else ascii(text[:100])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on one address only."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _NotYetError(f"{host!r} has no address here: {error}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise _NotYetError(f"nothing can listen on {host}:{port} here: {error}") from error
    return listening


def _find(host: str, port: int) -> str:
    """The address at which somebody listens; torch itself would print pages until it answers."""
    try:
        with closing(socket.create_connection((host, port), timeout=TRY_SECONDS)) as probe:
            return str(probe.getpeername()[0])
    except OSError as error:
        raise _NotYetError(f"worker 0 does not listen at {host}:{port}: {error}") from error


def _bounded(work: Callable[[], T], seconds: float, otherwise: str) -> T:
    """What `work` returns or raises; _NotYetError after some time: torch's client waits for ever on a silent peer."""
    found: list[T | BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again by who waits
            found.append(error)

    thread = threading.Thread(target=run, name=ATTEMPT, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise _NotYetError(otherwise)
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

"""The place where ranks meet: strangers and gangs from before at its port, and who can reach it at all."""

from __future__ import annotations

import base64
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from guards import HANG_SECONDS
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousTimeoutError,
    rendezvous_handler_registry,
)
from torch.distributed.run import config_from_args, get_args_parser

from stageline.errors import ConfigError
from stageline.jobs.environment import Meeting, loopback_environment, meeting_here, rank_environment, without_ranks
from stageline.trainer import rendezvous
from stageline.trainer.rendezvous import make_handler, read_meeting

from .conftest import Payload

HOST = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # is refused
RANK = """
import os, sys, time, torch.distributed as dist
from pathlib import Path
folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, one = dist.get_rank(), __import__("torch").ones(1)
dist.all_reduce(one)
(folder / f"began-{rank}-{os.getpid()}").touch()
while not (folder / "end").exists():
    time.sleep(0.05)
    dist.all_reduce(one)
dist.destroy_process_group()
print(f"rank {rank} of {int(os.environ['WORLD_SIZE'])} ended well", flush=True)
"""
"""A rank that works with the others until it is told to end."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rendezvous, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(rendezvous, "TRY_SECONDS", 0.5)
    yield
    end = time.monotonic() + HANG_SECONDS
    while any(thread.name == rendezvous.ATTEMPT for thread in threading.enumerate()):
        assert time.monotonic() < end, "an attempt that was given up does not end with its connection"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def parameters(port: int, rank: int | None, nodes: int = 2, host: str = HOST, **more: Any) -> RendezvousParameters:
    told = {"rank": rank, "timeout": HANG_SECONDS, **more}
    plain = {name: value for name, value in told.items() if value is not None}
    return RendezvousParameters("stageline", f"{host}:{port}", "a-film", nodes, nodes, **plain)


class Node:
    """A node that looks for its gang."""

    def __init__(self, port: int, rank: int, uid: str, **more: Any) -> None:
        self.handler: RendezvousHandler = make_handler(parameters(port, rank, member=uid, **more))
        self.info: RendezvousInfo | None = None
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        try:
            self.info = self.handler.next_rendezvous()
        except Exception as error:  # noqa: BLE001  # the test looks at it
            self.error = error

    def found(self) -> RendezvousInfo:
        self.thread.join(HANG_SECONDS)
        assert self.info is not None, self.error
        return self.info

    def gave_up(self) -> str:
        self.thread.join(HANG_SECONDS)
        assert isinstance(self.error, RendezvousTimeoutError), self.error
        return str(self.error)

    def waits(self, caplog: pytest.LogCaptureFixture, words: str) -> None:
        """Return when it has said why it waits."""
        end = time.monotonic() + HANG_SECONDS
        while not any(words in record.getMessage() for record in caplog.records):
            assert self.thread.is_alive(), (self.info, self.error)
            assert time.monotonic() < end, caplog.text
            time.sleep(0.01)
        assert self.info is None

    def stops(self) -> None:
        """It looks no more, and has found nobody."""
        self.handler.set_closed()
        self.thread.join(HANG_SECONDS)
        assert isinstance(self.error, RendezvousClosedError), (self.info, self.error)

    def leave(self) -> None:
        """As when its process ends."""
        self.handler.shutdown()
        self.info = None


def gang(port: int, *uids: str) -> list[Node]:
    return [Node(port, rank, uid, nodes=len(uids)) for rank, uid in enumerate(uids)]


def stranger(port: int) -> TCPStore:
    wait = time.monotonic() + HANG_SECONDS
    while True:
        try:
            socket.create_connection((HOST, port)).close()
            break
        except OSError:
            assert time.monotonic() < wait
            time.sleep(0.01)
    return TCPStore(HOST, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=HANG_SECONDS))


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Addresses on which a process and its children listen."""
    found = set()
    for each in (process, *process.children(recursive=True)):
        for connection in each.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.add((connection.laddr.ip, connection.laddr.port))
    return found


# What a rendezvous is, among friends.


def test_torchrun_finds_the_backend_by_its_entry_point() -> None:
    handler = rendezvous_handler_registry.create_handler(parameters(0, 0, nodes=1))
    info = handler.next_rendezvous()
    assert (handler.get_backend(), info.rank, info.world_size) == ("stageline", 0, 1)
    assert handler.use_agent_store, "rank 0 would make a store of its own, which listens on every address"


def test_all_nodes_of_a_gang_meet_below_one_name() -> None:
    port = free_port()
    nodes = gang(port, "uid-0", "uid-1", "uid-2")
    found = [node.found() for node in nodes]
    assert [(info.rank, info.world_size) for info in found] == [(0, 3), (1, 3), (2, 3)]
    found[2].store.set("word", "said")
    assert found[0].store.get("word") == b"said"
    assert len({node.handler.get_run_id() for node in nodes}) == 1, "it is what ranks of one start have in common"
    assert {(info.bootstrap_store_info.master_addr, info.bootstrap_store_info.master_port) for info in found} == {
        (HOST, port)
    }


def test_what_the_entry_writes_is_what_the_handler_reads() -> None:
    meeting = Meeting(rank=1, member="12345678-90ab", bind="10.0.0.7", seconds=33.2)
    environment = rank_environment({}, ("train", "film"), "/records", lease_wait_seconds=1, meeting=meeting)
    assert environment["PET_RDZV_BACKEND"] == rendezvous.BACKEND
    words = ["--nnodes=2", "--rdzv-endpoint=a-film-worker-0:23456", "--rdzv-id=a-film"]
    words += [f"--rdzv-backend={environment['PET_RDZV_BACKEND']}", f"--rdzv-conf={environment['PET_RDZV_CONF']}"]
    read = read_meeting(_as_torchrun_reads(words))
    assert (read.host, read.port, read.job) == ("a-film-worker-0", 23456, "a-film")
    assert (read.rank, read.nodes, read.bind, read.seconds) == (1, 2, "10.0.0.7", 34.0)
    assert read.member.startswith("12345678-90ab/")
    here = read_meeting(_as_torchrun_reads(meeting_here("a-film")))
    assert (here.host, here.port, here.bind, here.rank, here.nodes) == (HOST, 0, HOST, 0, 1)


def _as_torchrun_reads(words: list[str]) -> RendezvousParameters:
    config, _, _ = config_from_args(get_args_parser().parse_args([*words, "--nproc-per-node=1", "program.py"]))
    return RendezvousParameters(
        backend=config.rdzv_backend,
        endpoint=config.rdzv_endpoint,
        run_id=config.run_id,
        min_nodes=config.min_nodes,
        max_nodes=config.max_nodes,
        **config.rdzv_configs,
    )


def test_everything_that_cannot_be_meant_is_told_at_once() -> None:
    told = RendezvousParameters("stageline", "a-host", "a", 1, 2, rank=7, member="a b", bind="::", timeout="soon")
    with pytest.raises(ConfigError) as caught:
        make_handler(told)
    for words in (
        "--nnodes 1:2",
        "'a-host': expected HOST:PORT",
        "rank=7",
        "'a b'",
        "'::' would listen on every",
        "soon",
    ):
        assert words in caught.value.message
    with pytest.raises(ConfigError, match="rank=None: expected a number below 2"):
        make_handler(parameters(1, None))
    with pytest.raises(ConfigError, match="nobody else can know port 0"):
        make_handler(parameters(0, 1))


# Who can reach it.


@pytest.mark.parametrize(("host", "bind"), [(HOST, None), (HOST, "127.0.0.2"), ("::1", None)])
def test_the_store_listens_on_the_address_it_was_given_and_on_no_other(host: str, bind: str | None) -> None:
    before = listening(psutil.Process())
    own = host if ":" not in host else f"[{host}]"
    handler = make_handler(parameters(0, 0, nodes=1, host=own, bind=bind))
    info = handler.next_rendezvous().bootstrap_store_info
    assert listening(psutil.Process()) - before == {(bind or host, info.master_port)}
    assert info.master_addr == (bind or host)
    handler.shutdown()


@pytest.mark.parametrize("host", EVERYWHERE)
def test_a_store_for_everybody_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="would listen on every address"):
        make_handler(parameters(23456, 0, host=f"[{host}]" if ":" in host else host))


# Gangs from before.


@pytest.mark.parametrize("victim", [0, 1])
def test_a_pod_that_takes_the_place_of_another_waits_for_the_old_gang_to_end(
    victim: int, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    old = gang(port, "old-0", "old-1")
    first = [node.found() for node in old]
    old[victim].leave()
    if victim == 0:
        first[0] = None  # type: ignore[call-overload]  # its process has ended, and the store with it
        with pytest.raises(RendezvousConnectionError, match="is gone"):
            _ask_until_it_raises(old[1])
        new_other = Node(port, 0, "new-0")
        new = [new_other, Node(port, 1, "new-1")]
    else:
        newcomer = Node(port, 1, "new-1")
        newcomer.waits(caplog, "is one from before")
        assert first[0].store.check(["nothing"]) is False, "the old gang is not disturbed"
        old[0].leave()
        first.clear()
        new = [Node(port, 0, "new-0"), newcomer]
    found = [node.found() for node in new]
    found[0].store.set("word", "said")
    assert found[1].store.get("word") == b"said"


def _ask_until_it_raises(node: Node) -> None:
    end = time.monotonic() + HANG_SECONDS
    while time.monotonic() < end:
        assert node.handler.num_nodes_waiting() == 0
        time.sleep(0.01)


def test_an_attempt_of_the_same_pod_does_not_join_the_gang_of_the_one_before(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    old = gang(port, "uid-0", "uid-1")
    kept = [node.found() for node in old]
    again = Node(port, 1, "uid-1")
    again.waits(caplog, "has formed without this worker 1")
    again.stops()
    assert [info.rank for info in kept] == [0, 1]


def test_an_attempt_that_ended_before_its_gang_had_formed_is_replaced(impatient: None) -> None:
    port = free_port()
    first = Node(port, 0, "uid-0", nodes=3)
    shared = PrefixStore("stageline/a-film", stranger(port))
    shared.set("member/1", "uid-1/an-earlier-one")
    others = [Node(port, rank, f"uid-{rank}", nodes=3) for rank in (1, 2)]
    assert [node.found().rank for node in (first, *others)] == [0, 1, 2]
    assert "an-earlier-one" not in shared.get("members").decode()


def test_the_same_place_is_not_taken_twice(impatient: None, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    first = Node(port, 0, "uid-0", nodes=3)
    one = Node(port, 1, "uid-1", nodes=3)
    shared = PrefixStore("stageline/a-film", stranger(port))
    shared.wait(["member/1"])
    twin = Node(port, 1, "uid-of-a-twin", nodes=3)
    twin.waits(caplog, "worker 1 of the gang at 127.0.0.1")
    last = Node(port, 2, "uid-2", nodes=3)
    assert [node.found().rank for node in (first, one, last)] == [0, 1, 2]
    twin.stops()


def test_another_job_at_the_same_store_is_not_met() -> None:
    port = free_port()
    first = Node(port, 0, "uid-0")
    shared = PrefixStore("stageline/another-job", stranger(port))
    shared.set("member/1", "uid-9/x")
    first.thread.join(0.3)
    assert first.info is None, "it waits on"
    assert Node(port, 1, "uid-1").found().rank == 1


# Stores that never come.


def test_a_store_that_never_comes(impatient: None) -> None:
    text = Node(free_port(), 1, "uid-1", timeout=1).gave_up()
    assert "worker 1 of 'a-film' waited 1 s for its peers: worker 0 does not listen at 127.0.0.1" in text


def test_peers_that_never_come(impatient: None) -> None:
    text = Node(free_port(), 0, "uid-0", nodes=3, timeout=1).gave_up()
    assert "worker 1, worker 2 did not come to 127.0.0.1:" in text


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100], ids=["silent", "http"])
def test_a_port_that_is_no_store(answer: bytes, impatient: None) -> None:
    with socket.create_server((HOST, 0)) as server:
        thread = threading.Thread(target=_answer, args=(server, answer))
        thread.start()
        text = Node(server.getsockname()[1], 1, "uid-1", timeout=2).gave_up()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(HANG_SECONDS)
    assert "waited 2 s for its peers" in text
    assert "does not answer as a store does" in text or "went away" in text


def _answer(server: socket.socket, answer: bytes) -> None:
    with ExitStack() as kept:
        while True:
            try:
                connection = kept.enter_context(server.accept()[0])
                connection.sendall(answer)
            except OSError:
                if server.fileno() < 0 or not _accepts(server):
                    return


def _accepts(server: socket.socket) -> bool:
    return bool(server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def test_a_port_that_somebody_has_already_is_waited_for(impatient: None, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        first = Node(port, 0, "uid-0", nodes=1)
        first.waits(caplog, "nothing can listen on 127.0.0.1")
    assert first.found().rank == 0


# Keys of a stranger.


def test_a_strangers_pickles_are_nobodys_code(mark: Path) -> None:
    port = free_port()
    first = Node(port, 0, "uid-0", nodes=3)
    keys = stranger(port)
    bad = pickle.dumps(Payload(mark))
    for name in ("torch.rendezvous.a-film", "stageline/a-film/state", "default_pg/0//cpu//0", "members"):
        keys.set(name, bad.decode("latin-1"))
        keys.set(f"{name}/encoded", base64.b64encode(bad).decode())
    keys.set("torch.rendezvous.a-film", base64.b64encode(bad).decode())
    others = [Node(port, rank, f"uid-{rank}", nodes=3) for rank in (1, 2)]
    assert [node.found().rank for node in (first, *others)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param(b"\x80\x04N.", "can't be read", id="a-pickle"),
        pytest.param(b"[" * 1000 + b"]" * 1000, "can't be read", id="deep"),
        pytest.param(b'"' + b"x" * (1 << 20) + b'"', "can't be read", id="long"),
        pytest.param(b'{"0": "uid-0"}', "no list of names", id="no-list"),
        pytest.param(b'[1, {"a": 2}]', "no list of names", id="no-names"),
        pytest.param(b'["uid-0/x", "uid-1/x"]', "has formed without this worker 1", id="guessed"),
        pytest.param(b"[]", "has formed without this worker 1", id="empty"),
    ],
)
def test_a_list_that_a_stranger_wrote(
    value: bytes, words: str, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    store = TCPStore(HOST, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=HANG_SECONDS))
    PrefixStore("stageline/a-film", store).set("members", value.decode("latin-1"))
    node = Node(port, 1, "uid-1")
    node.waits(caplog, words)
    node.stops()


def test_a_strangers_name_is_shown_plainly(impatient: None, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    store = TCPStore(HOST, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=HANG_SECONDS))
    PrefixStore("stageline/a-film", store).set("member/1", "\x1b[2J\n# all is well" + "x" * 5000)
    node = Node(port, 1, "uid-1")
    node.waits(caplog, "is one from before")
    node.stops()
    assert "\x1b" not in caplog.text
    assert all(len(record.getMessage()) < 600 for record in caplog.records)


# Real torchruns.


class Torchrun:
    """One node's torchrun with one rank; the test is the operator that starts it again."""

    def __init__(self, folder: Path, port: int, rank: int, uid: str) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "STAGELINE_"))}
        (folder / "rank.py").write_text(RANK)
        meeting = Meeting(rank=rank, member=uid, bind=HOST, seconds=HANG_SECONDS)
        told = {"nnodes": "2", "nproc-per-node": "1", "rdzv-endpoint": f"{HOST}:{port}", "rdzv-id": "a-film"}
        told |= {
            "rdzv-backend": rendezvous.BACKEND,
            "rdzv-conf": meeting.text(),
            "max-restarts": "0",
            "local-addr": HOST,
        }
        words = [f"--{name}={value}" for name, value in told.items()]
        self.log = folder / f"{uid}.txt"
        with self.log.open("wb") as output:
            self.process = psutil.Popen(
                [sys.executable, "-m", "torch.distributed.run", *words, str(folder / "rank.py"), str(folder)],
                env={**own, **loopback_environment(), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """All of it at once, as when a pod is killed."""
        for each in [*self.process.children(recursive=True), self.process]:
            each.send_signal(signal.SIGKILL)
        self.process.wait(HANG_SECONDS)

    def end(self) -> int:
        return int(self.process.wait(HANG_SECONDS))

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture
def torchruns() -> Iterator[list[Torchrun]]:
    """All that were started; none outlives the test."""
    started: list[Torchrun] = []
    yield started
    for each in started:
        if each.process.is_running() and each.process.status() != psutil.STATUS_ZOMBIE:
            each.kill()


def _until(is_there: Any, torchruns: list[Torchrun]) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not is_there():
        assert time.monotonic() < end, [each.text for each in torchruns]
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_either_worker_is_killed_and_both_train_again(tmp_path: Path, torchruns: list[Torchrun], victim: int) -> None:
    port = free_port()

    def start(rank: int, uid: str) -> Torchrun:
        torchruns.append(Torchrun(tmp_path, port, rank, uid))
        return torchruns[-1]

    pods = {rank: start(rank, f"first-{rank}") for rank in (0, 1)}
    _until(lambda: len(list(tmp_path.glob("began-*"))) == 2, torchruns)
    pods[victim].kill()
    pods[victim] = start(victim, f"second-{victim}")  # while the old gang may still be there
    survivor = 1 - victim
    assert pods[survivor].end() != 0, "it has lost its peer and ends, so that it can be started again"
    pods[survivor] = start(survivor, f"second-{survivor}")
    _until(lambda: len(list(tmp_path.glob("began-*"))) == 4, torchruns)
    (tmp_path / "end").touch()
    assert [pods[rank].end() for rank in (0, 1)] == [0, 0], [each.text for each in torchruns]
    assert all(f"rank {rank} of 2 ended well" in pods[rank].text for rank in (0, 1))


@pytest.mark.slow
def test_code_of_a_stranger_runs_in_no_worker(tmp_path: Path, torchruns: list[Torchrun], mark: Path) -> None:
    """What c10d's rendezvous unpickled in every worker: anybody's value of one key of the store."""
    port = free_port()
    (tmp_path / "end").touch()
    torchruns.append(Torchrun(tmp_path, port, 0, "uid-0"))
    keys = stranger(port)
    keys.set("torch.rendezvous.a-film", base64.b64encode(pickle.dumps(Payload(mark))).decode())
    torchruns.append(Torchrun(tmp_path, port, 1, "uid-1"))
    assert [each.end() for each in torchruns] == [0, 0], [each.text for each in torchruns]


@pytest.mark.slow
def test_ranks_of_a_laptop_are_reached_from_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    words = ["-m", "torch.distributed.run", *meeting_here("a-film"), "--nproc-per-node=2", str(tmp_path / "rank.py")]
    own = {**without_ranks(os.environ), **loopback_environment(), "OMP_NUM_THREADS": "1"}
    with psutil.Popen([sys.executable, *words, str(tmp_path)], env=own, stdin=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + HANG_SECONDS
            while len(list(tmp_path.glob("began-*"))) < 2:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            addresses = listening(process)
            (tmp_path / "end").touch()
            assert process.wait(HANG_SECONDS) == 0
        finally:
            if process.poll() is None:
                process.kill()
    assert len(addresses) >= 3, "the store, and gloo in each rank"
    assert {host for host, _ in addresses} == {HOST}

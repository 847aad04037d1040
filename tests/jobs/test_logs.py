"""Log lines come exactly once, whatever happens to the streams, and what is missing is said."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.errors import ClusterError
from stageline.jobs.cluster.follow import logs as logs_module
from stageline.jobs.cluster.follow.logs import LogFollower
from stageline.kube.log_cursor import Gap, LogCursor

from .served_logs import START, Cut, Line, ServedLogs, Stream, stamped


@pytest.fixture(autouse=True, scope="module")
def _no_pauses() -> object:
    """Retries without waiting: what is tested is the order of things, not the clock."""
    before = logs_module.RETRY_SECONDS, logs_module.LONGEST_RETRY_SECONDS
    logs_module.RETRY_SECONDS = logs_module.LONGEST_RETRY_SECONDS = 0.001
    yield
    logs_module.RETRY_SECONDS, logs_module.LONGEST_RETRY_SECONDS = before


def read(served: ServedLogs, *, since: str = "", follow: bool = True) -> list[str]:
    """Every line of a pod whose container has ended."""
    lines: list[str] = []
    follower = LogFollower(served, lines.append, since=since, follow=follow)
    follower.update(served.pod())
    follower.drain(10.0)
    follower.close()
    return lines


def gaps(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("(log of pod")]


# Few distinct times: seconds and nanoseconds that repeat are the hard case.
times = st.lists(st.sampled_from([0, 1, 2, 10**9, 10**9 + 1, 3 * 10**9, 3 * 10**9 + 7]), max_size=25).map(sorted)
texts = st.sampled_from(["", "a", "ab", "abc", "step 1 loss 0.5", "ä €", " x", "2026-01-01T00:00:00Z"])
instance = times.flatmap(lambda when: st.tuples(*(st.tuples(st.just(t), texts) for t in when))).map(list)
cuts = st.lists(st.builds(Cut, st.integers(0, 400), st.booleans()), max_size=6)


@given(instance, st.lists(st.builds(Cut, st.integers(0, 400)), max_size=6))
def test_every_line_comes_once_however_streams_are_dropped(lines: list[Line], dropped: list[Cut]) -> None:
    assert read(ServedLogs([list(lines)], dropped)) == [text for _, text in lines]


@given(instance, cuts)
def test_every_character_comes_once_when_streams_close_within_a_line(lines: list[Line], ended: list[Cut]) -> None:
    unique = [(when, f"<{number}:{text}>") for number, (when, text) in enumerate(lines)]
    delivered = read(ServedLogs([unique], ended))
    assert "".join(delivered) == "".join(text for _, text in unique)


@given(instance, st.lists(st.integers(0, 5), max_size=4), cuts.map(lambda cs: [Cut(c.after_bytes) for c in cs]))
def test_rotated_lines_are_said_to_be_missing_and_the_rest_comes_once(
    lines: list[Line], rotations: list[int], dropped: list[Cut]
) -> None:
    spread = [(number * 10**9 // 3, f"line {number}") for number in range(len(lines))]
    served = ServedLogs([list(spread)], dropped, rotations=rotations)
    delivered = read(served)
    kept = [line for line in delivered if line.startswith("line")]
    assert len(set(kept)) == len(kept)
    missing = {text for _, text in spread} - set(kept)
    assert missing <= {text for _, text in served.lost}
    between = [text for text in missing if kept and any(k for k in kept if int(k[5:]) < int(text[5:]))]
    if between:  # what was lost before the first line we ever saw, nobody can know of
        assert gaps(delivered)


def test_a_gap_names_the_pod_and_both_times() -> None:
    lines = [(0, "a"), (5 * 10**9, "b"), (9 * 10**9, "c")]
    served = ServedLogs([lines], [Cut(len(stamped((0, "a"))) + 1)], rotations=[0, 2])
    sentence = (
        "(log of pod lab-film-worker-0 between 2026-09-21T14:13:20.000Z and 2026-09-21T14:13:29.000Z "
        "was not served any more)"
    )
    assert read(served) == ["a", sentence, "c"]


def test_a_log_that_lost_its_end_says_so() -> None:
    served = ServedLogs([[(0, "a"), (10**9, "b")]], [Cut(len(stamped((0, "a"))) + 1)], rotations=[0, 2])
    assert read(served) == [
        "a",
        "(log of pod lab-film-worker-0 after 2026-09-21T14:13:20.000Z was not served any more)",
    ]


@given(st.lists(instance, min_size=2, max_size=2), cuts.map(lambda cs: [Cut(c.after_bytes) for c in cs]))
def test_a_restarted_container_is_read_to_its_end_first(instances: list[list[Line]], dropped: list[Cut]) -> None:
    later = [(when + 10 * 10**9, text) for when, text in instances[1]]
    assert read(ServedLogs([list(instances[0]), later], dropped)) == [t for _, t in [*instances[0], *later]]


def test_a_restart_while_the_stream_is_cut_loses_nothing() -> None:
    first, second = [(0, "a"), (1, "b")], [(9 * 10**9, "c")]

    def restart(served: ServedLogs, number: int) -> None:
        if number == 1:
            served.instances.append(second)

    served = ServedLogs([first], [Cut(len(stamped(first[0])) + 1)], before_open=restart)
    assert read(served) == ["a", "b", "c"]


def test_instances_nobody_serves_any_more_are_said() -> None:
    served = ServedLogs([[(0, "old")], [(1, "b")], [(2, "c")]])
    assert read(served) == ["(log of pod lab-film-worker-0 before restart 1 was not served any more)", "b", "c"]


def test_a_pod_of_the_same_name_is_not_taken_for_ours() -> None:
    def replace(served: ServedLogs, number: int) -> None:
        if number == 1:
            served.uid, served.instances = "u2", [[(0, "not ours"), (9 * 10**9, "not ours either")]]

    served = ServedLogs([[(0, "a"), (1, "b")]], [Cut(len(stamped((0, "a"))) + 1)], before_open=replace)
    assert read(served) == [
        "a",
        "(log of pod lab-film-worker-0 after 2026-09-21T14:13:20.000Z was not served any more)",
    ]


def test_a_pod_that_is_gone_after_its_last_line_leaves_no_gap() -> None:
    def vanish(served: ServedLogs, number: int) -> None:
        served.exists = number == 0

    served = ServedLogs([[(0, "a")]], before_open=vanish)
    lines: list[str] = []
    follower = LogFollower(served, lines.append)
    running = served.pod()
    running["status"]["containerStatuses"][0]["state"] = {"running": {}}
    follower.update(running)
    follower.ended(running)
    follower.drain(10.0)
    assert lines == ["a"]


def test_a_pod_that_came_and_went_unseen_is_said() -> None:
    served = ServedLogs([[(0, "a")]], exists=False)
    lines: list[str] = []
    follower = LogFollower(served, lines.append, prefixed=True)
    follower.ended(served.pod())
    assert lines == ["[worker-0] (log of pod lab-film-worker-0 was not served any more)"]


def test_a_pod_that_never_started_has_no_log_to_miss() -> None:
    served = ServedLogs([[]])
    pod = served.pod()
    pod["status"]["containerStatuses"] = []
    lines: list[str] = []
    follower = LogFollower(served, lines.append)
    follower.update(pod)
    follower.ended(pod)
    follower.drain(1.0)
    assert lines == []
    assert served.opened == 0


def test_since_leaves_out_what_is_older() -> None:
    served = ServedLogs([[(0, "a"), (5 * 10**9, "b")]])
    assert read(served, since="2026-09-21T14:13:24Z", follow=False) == ["b"]
    assert served.asked[0]["sinceTime"] == "2026-09-21T14:13:24Z"
    assert START == 1_790_000_000


def test_a_refusal_is_said_once_for_all_pods() -> None:
    class Forbidden(ServedLogs):
        def log(self, pod: str, query: object) -> Stream:
            raise ClusterError("the service account 'x' may not get pods/log", remedy="add this rule")

    said: list[str] = []
    follower = LogFollower(Forbidden([[]]), [].append, say=said.append)
    for uid in ("1", "2"):
        pod = ServedLogs([[]], uid=uid).pod()
        follower.update(pod)
    follower.drain(5.0)
    assert len(said) == 1
    assert "may not get pods/log" in said[0]


def test_closing_ends_the_threads_and_delivers_nothing_more() -> None:
    class Endless(ServedLogs):
        def log(self, pod: str, query: object) -> Stream:
            self.opened += 1
            return Stream([stamped((self.opened, f"line {self.opened}"))], None)

        def pod(self) -> dict[str, object]:  # type: ignore[override]
            plain = super().pod()
            plain["status"]["containerStatuses"][0]["state"] = {"running": {}}
            return plain

    lines: list[str] = []
    follower = LogFollower(Endless([[]]), lines.append)
    follower.update(Endless([[]]).pod())
    while len(lines) < 3:
        threading.Event().wait(0.001)
    follower.close()
    count = len(lines)
    follower.drain(5.0)
    assert len(lines) == count
    assert not [t for t in threading.enumerate() if t.name.startswith("log-")]


def test_closing_while_a_stream_is_opened_ends_that_stream_too() -> None:
    class Waiting(Stream):
        """Nothing comes until it is closed, as of a pod that says nothing."""

        def __init__(self) -> None:
            super().__init__([], None)
            self.closed = threading.Event()

        def lines(self) -> Iterator[bytes]:
            assert self.closed.wait(20), "read on although the follower is closed"
            yield from ()

        def close(self) -> None:
            self.closed.set()

    class Late(ServedLogs):
        def log(self, pod: str, query: object) -> Stream:
            opening.set()
            while not follower.closed.is_set():
                threading.Event().wait(0.001)
            return stream

    opening, stream = threading.Event(), Waiting()
    follower = LogFollower(Late([[]]), lambda text: None)  # noqa: ARG005
    follower.update(ServedLogs([[]]).pod())
    assert opening.wait(20)
    follower.closed.set()  # as `close` does before it looks for streams: there is none yet
    follower.drain(10.0)
    assert stream.closed.is_set()
    assert not [t for t in threading.enumerate() if t.name.startswith("log-")]


def test_the_kubelets_own_words_are_no_lines_of_the_program() -> None:
    cursor = LogCursor()
    assert list(cursor.take(b"unable to retrieve container logs for containerd://0123")) == []
    assert list(cursor.take(b"2026-09-21T14:13")) == []
    assert list(cursor.take(b"a program that prints without the kubelet's time")) != []


def test_times_with_an_offset_and_fewer_digits_are_understood() -> None:
    cursor = LogCursor()
    assert list(cursor.take(b"2026-09-21T16:13:20.5+02:00 a")) == ["a"]
    assert cursor.last == START * 10**9 + 500_000_000
    assert cursor.resume() == "2026-09-21T14:13:20Z"
    last = cursor.last
    assert last is not None
    assert list(cursor.take(b"2026-09-21T14:13:21Z b")) == [Gap(last, last + 500_000_000), "b"]

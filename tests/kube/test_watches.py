"""What a watch knows: nothing is reported twice, and what vanished between two lists is reported as gone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.errors import ClusterUnavailableError, StagelineError
from stageline.kube.watches import Known, Watch


def item(uid, version):
    return {"metadata": {"uid": str(uid), "resourceVersion": str(version)}}


def kinds(changes):
    return [(change.kind, change.object["metadata"]["uid"]) for change in changes]


def test_a_list_after_a_gap_reports_the_difference_only():
    known = Known()
    assert kinds(known.take_list([item(1, 1), item(2, 1)])) == [("added", "1"), ("added", "2")]
    assert kinds(known.take_list([item(2, 2), item(3, 1)])) == [("deleted", "1"), ("modified", "2"), ("added", "3")]
    assert kinds(known.take_list([item(2, 2), item(3, 1)])) == []


def test_a_repeated_stream_event_is_silent():
    known = Known()
    assert kinds(known.take(item(1, 5))) == [("added", "1")]
    assert kinds(known.take(item(1, 5))) == []
    assert kinds(known.drop(item(1, 6))) == [("deleted", "1")]
    assert kinds(known.drop(item(1, 6))) == []


worlds = st.lists(st.dictionaries(st.integers(0, 4), st.integers(0, 3), max_size=5), max_size=8)


@given(worlds)
def test_applying_the_changes_gives_the_world(worlds):
    known, mirror = Known(), {}
    for world in worlds:
        for change in known.take_list([item(uid, version) for uid, version in world.items()]):
            uid = change.object["metadata"]["uid"]
            if change.kind == "deleted":
                del mirror[uid]
            else:
                assert (change.kind == "added") == (uid not in mirror)
                mirror[uid] = change.object["metadata"]["resourceVersion"]
        assert mirror == {str(uid): str(version) for uid, version in world.items()}


class Stream:
    """One answer of a watch: its lines, then as long as nobody closes it nothing."""

    def __init__(self, *events, rest=b""):
        self._lines = [*(json.dumps(event).encode() for event in events), *([rest] if rest else [])]
        self.closed = False

    def lines(self):
        yield from self._lines
        assert self.closed, "read on although nothing comes any more"

    def close(self):
        self.closed = True


class Server:
    """As much of an API server as a watch needs. streams: its answers.  on_open: called before each."""

    namespace = "train"

    def __init__(self, *streams, on_open=lambda: None):
        self.streams, self.opened, self.on_open = list(streams), [], on_open

    def list(self, resource, **selection):
        return {"kind": "PodList", "items": [item(1, 1)], "metadata": {"resourceVersion": "1"}}

    def watch(self, resource, version, **selection):
        self.on_open()
        self.opened.append(self.streams.pop(0) if len(self.streams) > 1 else self.streams[0])
        return self.opened[-1]


def watch_of(server):
    return Watch(server, "pods/v1", patience_seconds=-1.0, say=str)


def test_a_stop_while_the_stream_is_opened_is_heard():
    server = Server(Stream({"type": "ADDED", "object": item(2, 2)}), on_open=lambda: watch.stop())
    watch = watch_of(server)
    assert [change.kind for change in watch.changes()] == ["added", "synced"]
    assert [stream.closed for stream in server.opened] == [True]


refused = {"type": "ERROR", "object": {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no"}}


@pytest.mark.parametrize(
    ("last", "kind"),
    [(Stream(refused), StagelineError), (Stream(rest=b'{"type": "ADDED", "obj'), ClusterUnavailableError)],
    ids=["refused", "cut within a line"],
)
def test_a_stream_that_ends_in_an_error_is_closed_while_the_error_is_kept(last, kind):
    with pytest.raises(kind) as kept:
        list(watch_of(Server(last)).changes())
    assert last.closed, f"still open while {kept.value} is held"

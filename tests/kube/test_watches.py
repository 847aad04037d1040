"""What a watch knows: nothing is reported twice, and what vanished between two lists is reported as gone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stageline.kube.watches import Known


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

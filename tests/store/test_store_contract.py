"""What holds on every store: one suite over disk, memory and S3."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from guards import HANG_SECONDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stageline.errors import StoreError
from stageline.store import NotFoundError, Store

MEBIBYTE = 2**20
part = st.text(alphabet="abcXYZ019._- =+", min_size=1, max_size=12).filter(
    lambda text: text not in (".", "..") and not text.startswith(".stageline-") and text.strip() == text
)
keys = st.lists(part, min_size=1, max_size=4).map("/".join)


def test_what_was_put_is_read_back(store: Store) -> None:
    store.put("a/b.bin", b"\x00\xffdata")
    assert store.get("a/b.bin") == b"\x00\xffdata"
    store.put("a/b.bin", b"")
    assert store.get("a/b.bin") == b""


def test_a_file_and_a_stream_arrive_whole(store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * (20 * 4096 + 3)
    source = tmp_path / "source.bin"
    source.write_bytes(data)
    store.put("from/file", source)
    store.put("from/chunks", (memoryview(data)[i : i + 3 * MEBIBYTE] for i in range(0, len(data), 3 * MEBIBYTE)))
    store.put("from/nothing", iter([]))
    target = tmp_path / "deep" / "target.bin"
    store.download("from/chunks", target)
    assert store.get("from/file") == data
    assert target.read_bytes() == data
    assert b"".join(store.stream("from/file", 5 * MEBIBYTE)) == data
    assert store.get("from/nothing") == b""
    assert list(store.stream("from/nothing")) == []


def test_a_copy_is_an_object_of_its_own(store: Store) -> None:
    store.put("a/one", b"first")
    for _ in range(2):
        store.copy("a/one", "b/c/two")
        assert store.get("b/c/two") == b"first"
    store.put("a/one", b"second")
    assert store.get("b/c/two") == b"first"
    store.delete("a/one")
    assert [(info.key, info.size) for info in store.list()] == [("b/c/two", 5)]
    with pytest.raises(NotFoundError, match="a/one"):
        store.copy("a/one", "b/three")


def test_stat_and_exists_tell_size_and_absence(store: Store) -> None:
    assert store.stat("nothing") is None
    assert not store.exists("nothing/at/all")
    store.put("there", b"12345")
    info = store.stat("there")
    assert info is not None
    assert (info.key, info.size) == ("there", 5)
    assert not store.exists("there/below")


def test_reading_what_is_not_there_names_it(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no/such"):
        store.get("no/such")
    with pytest.raises(NotFoundError):
        list(store.stream("no/such"))


def test_create_lets_only_the_first_write(store: Store) -> None:
    assert store.create("claim", b"one")
    assert not store.create("claim", b"two")
    assert store.get("claim") == b"one"


def test_of_many_threads_creating_exactly_one_wins(store: Store) -> None:
    for round_ in range(5):
        start = threading.Barrier(4)
        won: list[int] = []

        def claim(number: int, key: str, start: threading.Barrier = start, won: list[int] = won) -> None:
            start.wait(HANG_SECONDS)
            if store.create(key, b"%d" % number):
                won.append(number)

        threads = [threading.Thread(target=claim, args=(n, f"claims/{round_}")) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_SECONDS)
        assert len(won) == 1
        assert store.get(f"claims/{round_}") == b"%d" % won[0]


def test_replace_changes_only_what_its_token_saw(store: Store) -> None:
    store.put("lease", b"first")
    data, token = store.get_with_token("lease")
    assert data == b"first"
    assert store.replace("lease", b"second", token)
    assert not store.replace("lease", b"third", token)
    assert store.get("lease") == b"second"
    info = store.stat("lease")
    assert info is not None
    assert store.replace("lease", b"fourth", info.token)
    assert not store.replace("never/was", b"x", token)
    assert not store.exists("never/was")


def test_a_token_does_not_come_back_however_quickly_things_change(store: Store) -> None:
    store.put("lease", b"start")
    first = store.get_with_token("lease")[1]
    for number in range(30):
        store.put("lease", b"%05d" % number)
    assert not store.replace("lease", b"other", first)


def test_of_many_threads_replacing_exactly_one_wins(store: Store) -> None:
    store.put("lease", b"start")
    for _ in range(5):
        token = store.get_with_token("lease")[1]
        before = store.get("lease")
        start = threading.Barrier(3)
        won: list[bytes] = []

        def replace(
            number: int,
            token: str = token,
            before: bytes = before,
            start: threading.Barrier = start,
            won: list[bytes] = won,
        ) -> None:
            start.wait(HANG_SECONDS)
            if store.replace("lease", before + b"%d" % number, token):
                won.append(before + b"%d" % number)

        threads = [threading.Thread(target=replace, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_SECONDS)
        assert [store.get("lease")] == won


def test_listing_is_recursive_sorted_and_stays_in_its_folder(store: Store) -> None:
    for key in ("b/2", "a/1", "b/c/3", "bb/4", "top"):
        store.put(key, key.encode())
    assert [info.key for info in store.list()] == ["a/1", "b/2", "b/c/3", "bb/4", "top"]
    assert [(info.key, info.size) for info in store.list("b")] == [("b/2", 3), ("b/c/3", 5)]
    assert store.list("nowhere") == []
    assert store.folders() == ["a", "b", "bb"]
    assert store.folders("b") == ["c"]
    assert store.folders("nowhere") == []


def test_deleting_is_final_and_may_be_repeated(store: Store) -> None:
    for key in ("t/1", "t/u/2", "tt/3"):
        store.put(key, b"x")
    store.delete("t/1")
    store.delete("t/1")
    assert [info.key for info in store.list()] == ["t/u/2", "tt/3"]
    store.delete_tree("t")
    store.delete_tree("t")
    assert [info.key for info in store.list()] == ["tt/3"]
    assert store.folders() == ["tt"]


def test_a_child_is_the_folder_of_its_parent(store: Store) -> None:
    child = store.child("runs", "", "one")
    child.put("file", b"x")
    assert child.uri == f"{store.uri}/runs/one"
    assert store.get("runs/one/file") == b"x"
    assert [info.key for info in child.list()] == ["file"]
    assert child.child("deeper").list() == []


@pytest.mark.parametrize("key", ["", "/abs", "a//b", "a/", "./a", "a/../b", "..", "a\\b", "a\nb", ".stageline-lock"])
def test_what_is_no_key_is_refused_before_anything_happens(store: Store, key: str) -> None:
    with pytest.raises(StoreError, match="no key"):
        store.put(key, b"x")
    assert store.list() == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.dictionaries(keys, st.binary(max_size=64), max_size=6))
def test_any_keys_come_back_as_they_were_given(store: Store, contents: dict[str, bytes]) -> None:
    # A key can't also be a folder of another one: not on a disk.
    chosen = {k: v for k, v in contents.items() if not any(other.startswith(f"{k}/") for other in contents)}
    for key, data in chosen.items():
        store.put(f"any/{key}", data)
    assert {info.key: store.get(info.key) for info in store.list("any")} == {f"any/{k}": v for k, v in chosen.items()}
    store.delete_tree("any")

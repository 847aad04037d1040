"""Features: what is stored is read back bit for bit, once per key, by any number of processes; damage is never used."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guards import HANG_SECONDS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import load_file

from stageline.data.feature_files import ARRAYS, FILE_NAME, INDEX, index_bytes, parse_index
from stageline.data.feature_table import LARGE_BYTES
from stageline.data.features import FEATURES, FeatureStore
from stageline.data.pod_cache import StoredFiles
from stageline.errors import DataError, DiskFullError
from stageline.store import Store, open_store
from stageline.store.locks import LOCK

from .case import PARTS, CountingStore, named, read_count, vector, write_features

FLOATS = st.sampled_from(["float32", "float16"]).flatmap(
    lambda kind: arrays_of.arrays(np.dtype(kind), arrays_of.array_shapes(min_dims=0, min_side=0, max_side=4))
)


@given(values=st.lists(FLOATS, max_size=8), shard_bytes=st.sampled_from([2048, 1 << 20]))
def test_what_is_stored_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[np.ndarray], shard_bytes: int
) -> None:
    root = open_store(tmp_path_factory.mktemp("root"))
    store = FeatureStore.open(root, PARTS)
    with store.writer(shard_bytes=shard_bytes) as writer:
        for number, value in enumerate(values):
            writer.add(named(number), value, {"number": number % 2})
    for opened in (store, FeatureStore.open(root, PARTS)):
        assert opened.missing(named(number) for number in range(len(values))) == []
        assert len(opened) == len(values)
        for number, value in enumerate(values):
            found = opened.read(named(number))
            assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes())
            tensor = opened.tensor(named(number))
            assert tensor.numpy().tobytes() == value.tobytes()
            assert tuple(tensor.shape) == value.shape
            assert opened.fields(named(number)) == {"number": number % 2}
    for path in Path(store.folder.uri).glob("*.safetensors"):
        assert path.stat().st_size <= shard_bytes
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
        load_file(path)  # any program may read it


def test_bfloat16_keeps_its_bits(place: Store) -> None:
    value = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    with FeatureStore.open(place, PARTS).writer() as writer:
        writer.add(named(0), value.transpose(0, 1))
    store = FeatureStore.open(place, PARTS)
    assert store.tensor(named(0)).dtype == torch.bfloat16
    assert torch.equal(store.tensor(named(0)), value.transpose(0, 1))
    np.testing.assert_array_equal(store.read(named(0)), value.transpose(0, 1).float().numpy())


def test_another_key_is_another_folder(tmp_path: Path) -> None:
    root = open_store(tmp_path)
    first = FeatureStore.open(root, PARTS)
    write_features(first, [named(0)])
    first.note({"resize": "none"})
    for parts in ({**PARTS, "owner": "b" * 64}, {**PARTS, "settings": {"views": 9}}):
        assert FeatureStore.open(root, parts).missing([named(0)]) == [named(0)]
    assert FeatureStore.open(root, dict(reversed(PARTS.items()))).notes == {"resize": "none"}
    assert root.folders(FEATURES) == [first.key]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("picture.png", np.zeros(3, np.float32), "no id of a feature"),
        (named(0), np.zeros(3), "float64"),
        (named(0), np.zeros(3, np.int32), "int32"),
        (named(0), torch.zeros(3, dtype=torch.float64), "float64"),
        (named(0), np.zeros(3000, np.float32), "a shard holds 8192"),
        (named("there"), np.zeros(1, np.float32), "twice"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, name: str, value: Any, words: str) -> None:
    store = FeatureStore.open(open_store(tmp_path), PARTS)
    with store.writer(shard_bytes=8192) as writer:
        writer.add(named("there"), np.ones(3, np.float16))
        with pytest.raises(DataError, match=words):
            writer.add(name, value)
    assert store.missing([named("there"), named(0)]) == [named(0)]


def test_only_the_rows_that_are_asked_for_are_read(place: Store, tmp_path: Path, monkeypatch: Any) -> None:
    """Large rows one by one, by a range; small ones with their shard. On disk nothing is fetched at all."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    size = LARGE_BYTES // 4
    with FeatureStore.open(place, PARTS).writer() as writer:
        for number in range(6):
            writer.add(named(number), vector(named(number), size))
    log = tmp_path / "log"
    for _rank in range(2):  # of one pod
        store = FeatureStore.open(CountingStore.over(place, log), PARTS)
        np.testing.assert_array_equal(store.read(named(3)), vector(named(3), size))
        np.testing.assert_array_equal(store.read(named(3)), vector(named(3), size))
    fetched = sum(count for name, count in read_count(log).items() if not name.endswith(INDEX))
    assert fetched == (0 if place.local_path() is not None else 4 * size)


READ = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.data.case import PARTS, CountingStore, named, vector
from stageline.data.features import FeatureStore
from stageline.store import open_store
from stageline.store.locks import LOCK
store = FeatureStore.open(CountingStore.over(open_store(sys.argv[2]), Path(sys.argv[3])), PARTS)
print("ready", flush=True)
sys.stdin.readline()
assert all((store.read(named(number)) == vector(named(number))).all() for number in range(50))
"""


def run_ranks(code: str, *words: str, count: int = 2) -> list[subprocess.Popen[str]]:
    """Processes that begin at the same moment."""
    tree = str(Path(__file__).parents[2])
    command, pipe = [sys.executable, "-c", code, tree, *words], subprocess.PIPE
    ranks = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "ready\n"
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("go\n")
        rank.stdin.flush()
    return ranks


def test_two_ranks_of_a_node_fetch_once(s3_environment: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    root = open_store(f"s3://stageline-test/{tmp_path.name}")
    store = FeatureStore.open(root, PARTS)
    write_features(store, [named(number) for number in range(50)])
    sizes = {info.key: info.size for info in store.folder.list()}
    for rank in run_ranks(READ, root.uri, str(tmp_path / "log")):
        rank.communicate(timeout=HANG_SECONDS)
        assert rank.returncode == 0
    counts = read_count(tmp_path / "log")
    assert counts == {name: size for name, size in sizes.items() if name in counts}
    assert len(counts) == 2, "the index and the shard"
    assert not list((tmp_path / f"stageline-data-{os.getuid()}").glob(f"*{LOCK}"))


WRITE = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.data.case import PARTS, named, vector
from stageline.data.features import FeatureStore
from stageline.store import open_store
print("ready", flush=True)
sys.stdin.readline()
with FeatureStore.open(open_store(sys.argv[2]), PARTS).writer(shard_bytes=16384) as writer:
    for number in range(300):
        writer.add(named(number), vector(named(number)))
        if number == 150:
            print("half", flush=True)
            sys.stdin.readline()
assert "torch" not in sys.modules
"""


def test_processes_that_write_the_same_at_once_do_no_harm(place: Store) -> None:
    for rank in run_ranks(WRITE, place.uri):
        rank.communicate(timeout=HANG_SECONDS)
        assert rank.returncode == 0
    names = [named(number) for number in range(300)]
    store = FeatureStore.open(place, PARTS)
    assert store.missing(names) == []
    assert len(store) == 300
    for name in names:
        np.testing.assert_array_equal(store.read(name), vector(name))


def test_what_a_killed_process_wrote_is_kept(tmp_path: Path) -> None:
    (rank,) = run_ranks(WRITE, str(tmp_path), count=1)
    assert rank.stdout is not None
    assert rank.stdout.readline() == "half\n"
    rank.send_signal(signal.SIGKILL)
    rank.communicate(timeout=HANG_SECONDS)
    store = FeatureStore.open(open_store(tmp_path), PARTS)
    names = [named(number) for number in range(300)]
    left = store.missing(names)
    assert 0 < 300 - len(left) < 300, "whole shards were committed"
    assert left == names[-len(left) :]
    write_features(store, left)
    assert store.missing(names) == []


def test_what_others_wrote_is_known_after_a_look(tmp_path: Path) -> None:
    store, other = (FeatureStore.open(open_store(tmp_path), PARTS) for _ in range(2))
    write_features(other, [named(0)])
    assert other.has(named(0))
    assert not store.has(named(0))
    store.refresh()
    assert store.has(named(0))


def test_no_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore.open(open_store(tmp_path), PARTS)
    free = store.folder.free_bytes()
    assert free is not None
    with pytest.raises(DiskFullError, match="features have no room"), store.writer(free * 2):
        pass
    monkeypatch.setattr(type(store.folder), "free_bytes", lambda _: 100)
    with pytest.raises(DiskFullError, match="features have no room"):
        write_features(store, [named(number) for number in range(4)])
    assert len(store) == 0


def damage(store: FeatureStore, how: str) -> None:
    """Damage the one shard of a store, or its index."""
    names = {info.key.partition(".")[2]: info.key for info in store.folder.list() if FILE_NAME.fullmatch(info.key)}
    arrays, index = names[ARRAYS], names[INDEX]
    data = store.folder.get(arrays)
    if how == "gone":
        store.folder.delete(arrays)
    elif how == "truncated":
        store.folder.put(arrays, data[:-7])
    elif how == "bit":
        store.folder.put(arrays, data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif how == "index":
        store.folder.put(index, store.folder.get(index)[:-30])


def readable(store: FeatureStore, name: str) -> bool:
    try:
        return len(store.read(name)) > 0
    except DataError:
        return False


@pytest.mark.parametrize("how", ["gone", "truncated", "bit", "index"])
def test_damaged_features_are_missing_and_made_again(place: Store, tmp_path: Path, monkeypatch: Any, how: str) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = [named(number) for number in range(4)]
    write_features(FeatureStore.open(place, PARTS), names)
    damage(FeatureStore.open(place, PARTS), how)
    store = FeatureStore.open(place, PARTS)
    if how == "bit":
        assert store.missing(names) == []
        refused = [name for name in names if not readable(store, name)]
        assert len(refused) == (1 if place.local_path() is not None else 4)
    lost = store.missing(names)
    assert len(lost) == (1 if how == "bit" and place.local_path() is not None else 4)
    assert store.damaged
    write_features(store, lost)
    for again in (store, FeatureStore.open(place, PARTS)):
        for name in names:
            np.testing.assert_array_equal(again.read(name), vector(name))


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": "../elsewhere.safetensors"},
        {"schema": "other"},
        {"size": -1},
        {"entries": {"../x": ["F32", [1], 0, "0" * 64, {}]}},
        {"entries": {named(0): ["F64", [1], 0, "0" * 64, {}]}},
        {"entries": {named(0): ["F32", [-1], 0, "0" * 64, {}]}},
        {"entries": {named(0): ["F32", [1 << 40, 1 << 40], 0, "0" * 64, {}]}},
        {"entries": {named(0): ["F32", [1], 1 << 40, "0" * 64, {}]}},
        {"entries": {named(0): ["F32", [1], 0, "0", {}]}},
        {"entries": {named(0): None}},
    ],
)
def test_an_index_is_hostile_until_it_was_checked(tmp_path: Path, change: dict[str, Any]) -> None:
    """With the right hash in its name it says what no writer of ours says: nothing is opened or allocated for it."""
    store = FeatureStore.open(open_store(tmp_path), PARTS)
    write_features(store, [named(0)])
    (name,) = [info.key for info in store.folder.list() if info.key.endswith(INDEX)]
    assert index_bytes(parse_index(store.folder.get(name)))[0] == name
    data = json.dumps({**json.loads(store.folder.get(name)), **change}).encode()
    store.folder.delete(name)
    store.folder.put(f"{hashlib.sha256(data).hexdigest()}.{INDEX}", data)
    fresh = FeatureStore.open(open_store(tmp_path), PARTS)
    assert fresh.missing([named(0)]) == [named(0)]
    assert fresh.damaged


@pytest.fixture
def _usual_garbage_collection() -> Iterator[None]:
    """As often as in a program; other tests look for garbage more seldom."""
    seldom = gc.get_threshold()
    gc.set_threshold(700)
    yield
    gc.set_threshold(*seldom)


@pytest.mark.usefixtures("_usual_garbage_collection")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """About 100 bytes per entry are held, whatever its size."""
    peaks = []
    for count in (100, 1000):
        store = FeatureStore.open(open_store(tmp_path / str(count)), PARTS)
        names = [named(number) for number in range(count)]
        with store.writer(shard_bytes=1 << 18) as writer:
            for name in names:
                writer.add(name, vector(name, 1024))
        fresh = FeatureStore.open(open_store(tmp_path / str(count)), PARTS)
        tracemalloc.start()
        for name in names:
            fresh.read(name)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 900 * 300, "the bytes of the rows are 4096 each"


def test_a_store_travels_without_its_files_and_survives_a_fork(tmp_path: Path) -> None:
    store = FeatureStore.open(open_store(tmp_path), PARTS)
    names = [named(number) for number in range(100)]
    write_features(store, names)
    store.read(names[0])
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent).read(names[7]), vector(names[7]))  # noqa: S301
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(store.read(names[5]), vector(names[5])) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_cache_of_the_pod_stays_within_its_bytes(s3_environment: str, tmp_path: Path) -> None:
    store = FeatureStore.open(open_store(f"s3://stageline-test/{tmp_path.name}"), PARTS)
    with store.writer() as writer:
        for number in range(5):
            writer.add(named(number), vector(named(number), LARGE_BYTES // 4))
    small = FeatureStore.open(open_store(f"s3://stageline-test/{tmp_path.name}"), PARTS)
    small._table._files = StoredFiles(small.folder, tmp_path, 5 << 19)
    for number in (0, 1, 2, 3, 4, 0):
        np.testing.assert_array_equal(small.read(named(number)), vector(named(number), LARGE_BYTES // 4))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5 << 19

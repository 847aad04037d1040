"""Splits: what is written is read back; only what is touched is read, once per pod; damage is refused by name."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guards import HANG_SECONDS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from stageline.data.pod_cache import PARTIAL, StoredFiles
from stageline.data.reading import SplitReader
from stageline.data.shards import DTYPES, SplitWriter, row_type
from stageline.data.splits import SplitManifest, parse_manifest
from stageline.errors import DataError, DiskFullError
from stageline.store import Store, open_store
from stageline.store.locks import LOCK

from .case import CountingStore, open_split, read_count
from .conftest import picture, write_split

ANY_ARRAY = st.sampled_from(DTYPES).flatmap(
    lambda kind: arrays_of.arrays(np.dtype(kind), arrays_of.array_shapes(min_dims=0, min_side=0, max_side=5))
)
ROW = st.tuples(st.dictionaries(st.sampled_from("abc"), ANY_ARRAY), st.dictionaries(st.text(max_size=3), st.integers()))


@given(rows=st.lists(ROW, max_size=6), shard_bytes=st.sampled_from([4096, 1 << 20]))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    with SplitWriter(folder, shard_bytes=shard_bytes) as writer:
        for number, (arrays, fields) in enumerate(rows):
            assert writer.add(arrays, fields, {"n": number, "half": number / 2}) == number
        manifest = manifest_of(writer.finish())
    assert {path.name for path in folder.iterdir()} == set(manifest.sizes)
    assert all(manifest.sizes[name] <= shard_bytes for name in manifest.shards)
    reader = SplitReader(manifest, StoredFiles(open_store(folder), tmp_path_factory.mktemp("cache")))
    assert len(reader) == len(rows)
    if rows:
        assert reader.numbers("n").tolist() == list(range(len(rows)))
        assert reader.numbers("half").tolist() == [n / 2 for n in range(len(rows))]
    for number, (arrays, fields) in enumerate(rows):
        found = reader.arrays(number)
        assert reader.fields(number) == fields
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert found[name].tobytes() == array.tobytes()
            assert not found[name].flags.writeable or array.size == 0


def manifest_of(written: dict[str, Any]) -> SplitManifest:
    from stageline.data.splits import make_manifest

    about = {"family": "toy", "split": "train", "facts": {}, "folder": "data", **written}
    return parse_manifest(make_manifest(about), "somewhere/abc")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (({"a": np.array([object()])}, {}, {}), "cannot be written"),
        (({"a": np.array(["text"])}, {}, {}), "cannot be written"),
        (({"../a": np.zeros(1)}, {}, {}), "is no name"),
        (({}, {"x": math.nan}, {}), "are no JSON"),
        (({}, {}, {"n": math.inf}), "finite"),
        (({}, {}, {"m": 1}), "the rows before it"),
        (({"a": np.zeros((1, 2000))}, {}, {}), "a shard holds 8192"),
        (({"a": np.zeros((2, 2000)), "b": np.zeros(9)}, {}, {}), "longer first axis"),
        (({"a": np.zeros(2000)}, {"x": math.nan}, {}), "are no JSON"),
    ],
)
def test_rows_that_cannot_be_written_are_refused_whole(tmp_path: Path, row: Any, words: str) -> None:
    with SplitWriter(tmp_path, shard_bytes=8192) as writer:
        writer.add({"a": np.zeros(3)})
        with pytest.raises(DataError, match=words):
            writer.add(*row)
        writer.add({"a": np.ones(3)})
        manifest = manifest_of(writer.finish())
    reader = SplitReader(manifest, StoredFiles(open_store(tmp_path), tmp_path))
    assert [reader.array(row, "a").tolist() for row in range(len(reader))] == [[0, 0, 0], [1, 1, 1]]


def test_equal_rows_give_equal_files(tmp_path: Path) -> None:
    first, second = (
        write_split(open_store(tmp_path / name), tmp_path / f"{name}-scratch", 30) for name in ("one", "two")
    )
    assert (first.shards, first.rows, first.lines, first.digest) == (
        second.shards,
        second.rows,
        second.lines,
        second.digest,
    )
    assert len(first.shards) == 2


@settings(max_examples=15)
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(["|u1", "<f4", "<i8"]), st.integers(0, 90), st.integers(0, 12)),
        min_size=1,
        max_size=3,
    ),
    shard_bytes=st.sampled_from([200, 1024]),
)
def test_rows_larger_than_a_shard_are_divided_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[str, int, int]], shard_bytes: int
) -> None:
    folder, rng = tmp_path_factory.mktemp("divided"), np.random.default_rng(0)
    row = {"abc"[place]: rng.integers(0, 99, (n, m)).astype(kind) for place, (kind, n, m) in enumerate(shapes)}
    with SplitWriter(folder, shard_bytes=shard_bytes) as writer:
        for _ in range(2):
            writer.add({"small": np.arange(3)}, {}, {"n": 1})
            writer.add(row, {"id": "x"}, {"n": 2})
        manifest = manifest_of(writer.finish())
    assert all(manifest.sizes[name] <= shard_bytes for name in manifest.shards)
    reader = SplitReader(manifest, StoredFiles(open_store(folder), tmp_path_factory.mktemp("cache")))
    for number in (1, 3):
        assert reader.fields(number) == {"id": "x"}
        found = reader.arrays(number)
        assert found.keys() == row.keys()
        for name, array in row.items():
            pieces = list(reader.pieces(number, name))
            for got in (found[name], reader.array(number, name), np.concatenate(pieces)):
                assert (got.dtype, got.shape) == (array.dtype, array.shape)
                np.testing.assert_array_equal(got, array)
            assert not any(piece.flags.writeable and piece.size for piece in pieces if len(pieces) > 1)
    assert reader.array(2, "small").tolist() == [0, 1, 2]


def test_a_row_larger_than_a_shard_needs_neither_memory_nor_a_large_cache(tmp_path: Path) -> None:
    """24 MiB, written from a mapped file and read piecewise through a cache of three shards of a MiB."""
    shape, shard_bytes, cache_bytes = (96, 64, 1024), 1 << 20, 3 << 20
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float32, shape)
    big[:] = np.arange(96)[:, None, None]
    big.flush()
    place = open_store(f"memory://{tmp_path.name}/abc")
    (tmp_path / "scratch").mkdir()
    tracemalloc.start()
    with SplitWriter(tmp_path / "scratch", lambda path, name: place.put(f"data/{name}", path), shard_bytes) as writer:
        writer.add({"big": np.load(tmp_path / "big.npy", mmap_mode="r"), "ids": np.arange(96)})
        manifest = manifest_of(writer.finish())
    peaks = [tracemalloc.get_traced_memory()[1]]
    reader = open_split(place, manifest, tmp_path / "cache", cache_bytes)
    tracemalloc.reset_peak()
    start = 0
    for piece in reader.pieces(0, "big"):
        np.testing.assert_array_equal(piece[:, 7, 9], np.arange(start, start + len(piece)))
        start += len(piece)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.reset_peak()
    whole = reader.array(0, "big")
    peaks.append(tracemalloc.get_traced_memory()[1] - whole.nbytes)
    tracemalloc.stop()
    assert max(peaks) < 4 << 20
    assert (start, whole.shape) == (96, shape)
    assert (whole[:, 0, 0] == np.arange(96)).all()
    assert reader.array(0, "ids").tolist() == list(range(96))
    held = [path for path in (tmp_path / "cache").iterdir() if path.suffix != LOCK]
    assert sum(path.stat().st_size for path in held) <= cache_bytes


def test_a_second_start_reads_nothing_that_it_does_not_touch(place: Store, tmp_path: Path) -> None:
    manifest = write_split(place, tmp_path / "scratch", 200)
    log = tmp_path / "log"
    store = CountingStore.over(place, log)
    reader = open_split(store, manifest, tmp_path / "cache")
    np.testing.assert_array_equal(reader.array(3, "pixels"), picture(3, 32))
    assert read_count(log) == {
        name: manifest.sizes[name] for name in (manifest.rows, manifest.lines, manifest.shards[0])
    }, "the table and the one shard that was touched"
    log.unlink()
    again = open_split(store, manifest, tmp_path / "cache")
    np.testing.assert_array_equal(again.array(3, "pixels"), picture(3, 32))
    assert again.numbers("level")[7] == 3.5
    assert sum(read_count(log).values()) < 0.05 * (manifest.num_bytes - manifest.sizes[manifest.shards[0]])
    assert read_count(log) == {}


READ = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.data.case import CountingStore, open_split
from stageline.data.splits import MANIFEST, parse_manifest
from stageline.store import open_store
store = CountingStore.over(open_store(sys.argv[2]), Path(sys.argv[3]))
manifest = parse_manifest(open_store(sys.argv[2]).get(MANIFEST), sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
reader = open_split(store, manifest, Path(sys.argv[4]))
print(sum(int(reader.array(row, "pixels").sum()) for row in range(len(reader))))
"""


def test_two_ranks_of_a_node_fetch_once(place: Store, tmp_path: Path) -> None:
    manifest = write_split(place, tmp_path / "scratch", 60)
    tree = str(Path(__file__).parents[2])
    words = [sys.executable, "-c", READ, tree, place.uri, str(tmp_path / "log"), str(tmp_path / "cache")]
    ranks = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "ready\n"
    sums = {rank.communicate("go\n", timeout=HANG_SECONDS)[0] for rank in ranks}
    assert sums == {f"{sum(int(picture(row, 32).sum()) for row in range(60))}\n"}
    assert read_count(tmp_path / "log") == dict(manifest.sizes)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for rows in (500, 5000):
        store = open_store(tmp_path / f"{rows}")
        (tmp_path / f"{rows}").mkdir()
        tracemalloc.start()
        with SplitWriter(tmp_path / f"{rows}") as writer:
            for row in range(rows):
                writer.add({"vec": np.full(16, row, np.float32)}, {"id": f"row {row}"}, {"n": row})
            manifest = manifest_of(writer.finish())
        reader = SplitReader(manifest, StoredFiles(store, tmp_path))
        for row in range(0, rows, 7):
            assert reader.array(row, "vec")[0] == row
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000, "ten times the rows"


def test_the_cache_keeps_within_its_bytes_and_drops_what_was_used_longest_ago(
    s3_environment: str, tmp_path: Path
) -> None:
    place = open_store(f"s3://stageline-test/{tmp_path.name}/abc")
    manifest = write_split(place, tmp_path / "scratch", 100)
    cache, limit = tmp_path / "cache", 160 << 10
    log = tmp_path / "log"
    reader = open_split(CountingStore.over(place, log), manifest, cache, limit)
    (cache / f"{'0' * 64}.shard{PARTIAL}").write_bytes(b"x" * (100 << 10))  # of a process that died
    for row in range(100):
        np.testing.assert_array_equal(reader.array(row, "pixels"), picture(row, 32))
        held = [path for path in cache.iterdir() if path.suffix != LOCK]
        assert sum(path.stat().st_size for path in held) <= limit
    assert read_count(log) == dict(manifest.sizes), "in order every file is fetched once"
    small = open_split(place, manifest, tmp_path / "other", 10)
    with pytest.raises(DiskFullError, match="does not fit into the cache of 10 bytes") as caught:
        small.fields(0)
    assert "data.cache_bytes" in caught.value.remedy


@pytest.mark.parametrize("how", ["flipped", "longer", "shorter", "missing"])
def test_a_damaged_shard_is_refused_by_name_and_the_others_are_read(place: Store, tmp_path: Path, how: str) -> None:
    manifest = write_split(place, tmp_path / "scratch", 40)
    name = manifest.shards[1]
    data = place.get(f"data/{name}")
    changed = {"flipped": bytes([data[0] ^ 1]) + data[1:], "longer": data + b"x", "shorter": data[:-1]}
    if how == "missing":
        place.delete(f"data/{name}")
    else:
        place.put(f"data/{name}", changed[how])
    reader = open_split(place, manifest, tmp_path / "cache")
    np.testing.assert_array_equal(reader.array(0, "pixels"), picture(0, 32))
    with pytest.raises(DataError, match=name):
        reader.array(39, "pixels")
    assert not (tmp_path / "cache" / name).exists()


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON",
        b'{"arrays": {"pixels": ["|O8", [1], 0]}, "fields": {}}',
        b'{"arrays": {"pixels": ["|u1", [9999999999, 9999999999], 0]}, "fields": {}}',
        b'{"arrays": {"pixels": ["|u1", [-1], 0]}, "fields": {}}',
        b'{"arrays": {"pixels": ["|u1", [1], 99999999]}, "fields": {}}',
        b'{"arrays": {"../x": ["|u1", [1], 0]}, "fields": {}}',
        b'{"arrays": []}',
        b'{"arrays": {}, "fields": {}, "divided": {"pixels": ["|u1", [192], 0]}}',
        b'{"arrays": {}, "fields": {}, "divided": {"pixels": ["|u1", [192], [[0, 0, 191]]]}}',
        b'{"arrays": {}, "fields": {}, "divided": {"pixels": ["|u1", [192], [[0, -1, 192]]]}}',
        b'{"arrays": {}, "fields": {}, "divided": {"pixels": ["|u1", [192], [[7, 0, 192]]]}}',
        b'{"arrays": {}, "fields": {}, "divided": {"pixels": ["|u1", [192], [[0, 64, 192]]]}}',
        b'{"arrays": {}, "fields": {}, "divided": {"pixels": ["|u1", [1, 9999999999], [[0, 0, 1]]]}}',
        b'{"arrays": {}, "fields": {}, "divided": {"../x": ["|u1", [192], [[0, 0, 192]]]}}',
    ],
)
def test_a_line_is_hostile_until_it_was_checked(tmp_path: Path, line: bytes) -> None:
    """Files with the right hashes that say what no writer of ours says: nothing is allocated or read for them."""
    import hashlib

    with SplitWriter(tmp_path) as writer:
        writer.add({"pixels": picture(0, 8)})
        written = writer.finish()
    rows = np.frombuffer((tmp_path / written["rows_file"]).read_bytes(), row_type({})).copy()
    rows["@line_bytes"] = len(line)
    for kind, data in (("lines", line), ("rows", rows.tobytes())):
        name = f"{hashlib.sha256(data).hexdigest()}.{kind}"
        (tmp_path / name).write_bytes(data)
        del written["files"][written[f"{kind}_file"]]
        written["files"][name], written[f"{kind}_file"] = len(data), name
    reader = SplitReader(manifest_of(written), StoredFiles(open_store(tmp_path), tmp_path))
    with pytest.raises(DataError, match="is damaged"):
        reader.array(0, "pixels")


def test_a_reader_travels_without_its_files_and_survives_a_fork(tmp_path: Path) -> None:
    manifest = write_split(open_store(tmp_path / "abc"), tmp_path / "scratch", 20)
    reader = open_split(open_store(tmp_path / "abc"), manifest, tmp_path / "cache")
    reader.array(0, "pixels")
    sent = pickle.dumps(reader)
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent).array(19, "pixels"), picture(19, 32))  # noqa: S301
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(reader.array(5, "pixels"), picture(5, 32)) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_folder_of_somebody_else_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stageline.data.pod_cache import pod_folder

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert pod_folder().stat().st_mode & 0o777 == 0o700
    pod_folder().rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"stageline-data-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="belongs to somebody else"):
        pod_folder()


@pytest.mark.slow
def test_twenty_thousand_pictures_on_disk(tmp_path: Path) -> None:
    """Over 2 GB on disk: a second start reads under 5 % of what it does not touch; memory is flat. S3 is next."""
    rows, side = 20_000, 188
    local = open_store(tmp_path / "root" / "abc")
    manifest = write_split(local, tmp_path / "scratch", rows, side, 256 << 20)
    assert manifest.num_bytes >= 2 * 10**9
    assert max(manifest.sizes.values()) <= 256 << 20
    touched = manifest.shards[0]
    first = open_split(local, manifest, tmp_path / "cache")
    np.testing.assert_array_equal(first.array(5, "pixels"), picture(5, side))
    log = tmp_path / "log"
    again = open_split(CountingStore.over(local, log), manifest, tmp_path / "cache")
    np.testing.assert_array_equal(again.array(5, "pixels"), picture(5, side))
    assert sum(read_count(log).values()) < 0.05 * (manifest.num_bytes - manifest.sizes[touched])
    tracemalloc.start()
    for row in range(0, rows, 501):
        np.testing.assert_array_equal(again.array(row, "pixels"), picture(row, side))
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()
    assert json.dumps(again.fields(rows - 1)) == '{"id": "picture 19999"}'


READ_SOME = """
import sys, tracemalloc
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.data.case import CountingStore
from stageline.data.pod_cache import StoredFiles
from stageline.data.reading import SplitReader
from stageline.data.splits import MANIFEST, parse_manifest
from stageline.store import open_store
root = open_store(sys.argv[2])
files = StoredFiles(CountingStore.over(root, Path(sys.argv[3])).child("data"), Path(sys.argv[4]))
reader = SplitReader(parse_manifest(root.get(MANIFEST), sys.argv[2]), files)
print("ready", flush=True)
rows = range(*map(int, sys.stdin.readline().split()))
tracemalloc.start()
total = sum(int(reader.array(row, "pixels").sum()) for row in rows)
print(total, tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.slow
def test_twenty_thousand_pictures_in_an_object_store(s3_environment: str, tmp_path: Path) -> None:
    """In S3: two ranks of a node fetch what they touch once, together; a second start fetches nothing; memory is flat.

    250 MB in 15 shards, not 2 GB: the mock that serves them takes minutes for those, since every range costs it a read
    of the whole object.
    """
    rows, side = 20_000, 64
    place = open_store(f"s3://stageline-test/{tmp_path.name}/abc")
    manifest = write_split(place, tmp_path / "scratch", rows, side, 16 << 20)
    assert len(manifest.shards) == 15
    log, cache = tmp_path / "log", tmp_path / "cache"
    cache.mkdir()
    words = [sys.executable, "-c", READ_SOME, str(Path(__file__).parents[2]), place.uri, str(log), str(cache)]

    def start(begin: int, end: int, step: int, ranks: int = 1) -> list[int]:
        """Peaks of memory of some ranks that read the same rows at the same time."""
        pipe = subprocess.PIPE
        processes = [subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) for _ in range(ranks)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        expected, peaks = sum(int(picture(row, side).sum()) for row in range(begin, end, step)), []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{begin} {end} {step}\n")
            process.stdin.flush()
        for process in processes:
            total, peak = map(int, process.communicate(timeout=HANG_SECONDS)[0].split())
            assert total == expected
            peaks.append(peak)
        return peaks

    few = start(0, 1000, 50, ranks=2)
    touched = {manifest.rows, manifest.lines, manifest.shards[0]}
    assert read_count(log) == {name: manifest.sizes[name] for name in touched}
    log.unlink()
    start(0, 1000, 50)
    untouched = manifest.num_bytes - sum(manifest.sizes[name] for name in touched)
    assert sum(read_count(log).values()) < 0.05 * untouched
    assert read_count(log) == {}
    many = start(0, rows, 10)
    assert many[0] < max(few) + (8 << 20), "a hundred times the rows, of 12 kB each"
    assert read_count(log) == {name: size for name, size in manifest.sizes.items() if name not in touched}

"""Small files that ask for much: refused by what they say of themselves, before memory is taken for it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stageline.checkpoint.header import parse_header, read_local_header
from stageline.checkpoint.legacy import load_torch_file
from stageline.checkpoint.metadata import TensorRecord
from stageline.checkpoint.steps import open_checkpoint
from stageline.config import parse_yaml, read_yaml
from stageline.config.bounds import read_json
from stageline.data.feature_files import parse_index
from stageline.data.pictures import read_file
from stageline.data.pod_cache import StoredFiles
from stageline.data.reading import SplitReader
from stageline.data.shards import row_type
from stageline.data.splits import SplitManifest, parse_manifest
from stageline.encoders.frozen import read_weights
from stageline.errors import CheckpointError, ConfigError, DataError, Faults, StagelineError
from stageline.families.film_flow.data.folder import read_prompts
from stageline.families.film_flow.data.proposal import _header
from stageline.families.panorama_vlm.data.panorama import check_panorama
from stageline.families.panorama_vlm.data.rows import read_rows
from stageline.families.panorama_vlm.data.tokenizer import load_tokenizer
from stageline.families.panorama_vlm.fetching import picture_fault
from stageline.families.sparse_structure.data.latent_rules import read_torch_file
from stageline.families.sparse_structure.data.scene_files import list_scenes
from stageline.families.sparse_structure.data.scene_files import read_scene as read_scene_file
from stageline.jobs.cluster.inspect.manifest import manifest_difference
from stageline.jobs.cluster.render.pytorchjob import render_job
from stageline.jobs.environment import CONFIG_VARIABLE
from stageline.store import open_store
from stageline.verbs.report.listing import list_runs

from ..jobs.jobs import JOBS

SOURCE = Path(__file__).parents[2] / "src" / "stageline"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
"""One thousand million values in four hundred bytes."""
MERGES = "m0: &m0 {k: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}\n" for n in range(1, 9))
DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(LAUGHS, "100000 values once aliases", id="aliases"),
        pytest.param(MERGES, "100000 values once aliases", id="merges"),
        pytest.param("a: &a [1, *a]", "without end", id="alias-in-itself"),
        pytest.param(f"a: {DEEP}", "deeper than 100 levels", id="flow-depth"),
        pytest.param("".join(f"{' ' * n}k:\n" for n in range(150)), "deeper than 100 levels", id="block-depth"),
        pytest.param("".join(f"k{n}: {n}\n" for n in range(60_000)), "100000 values", id="plain"),
        pytest.param(f"a: {'x' * 2**20}", "at most 1048576 are read", id="bytes"),
    ],
)
def test_a_config_that_grows_is_refused_with_the_limit(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_yaml(text, "config.yaml")


def test_a_config_file_is_not_read_beyond_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with file.open("wb") as opened:
        opened.truncate(2**40)  # takes up no room
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        read_yaml(file)


def test_anchors_and_merges_keep_working() -> None:
    text = "base: &base {lr: 1, steps: &steps [1, 2]}\none: {<<: *base, lr: 2}\ntwo: {<<: [*base], more: *steps}\n"
    plain = parse_yaml(text, "test")
    assert plain["one"] == {"lr": 2, "steps": [1, 2]}
    assert plain["two"] == {"lr": 1, "steps": [1, 2], "more": [1, 2]}


def test_a_config_in_a_job_that_runs_is_no_bomb_for_who_compares_it() -> None:
    job, settings = JOBS["film_flow"]
    live, rendered = render_job(job, settings), render_job(job, settings)
    pod = live["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    next(entry for entry in pod["containers"][0]["env"] if entry["name"] == CONFIG_VARIABLE)["value"] = LAUGHS
    (line,) = manifest_difference(live, rendered)
    assert CONFIG_VARIABLE in line


def test_a_job_that_no_cluster_would_take_is_not_rendered() -> None:
    job, settings = JOBS["film_flow"]
    large = settings.model_copy(update={"env": {f"V{n}": "x" * 10_000 for n in range(101)}})
    with pytest.raises(ConfigError, match=r"a cluster takes 1000000 \(LARGEST_JOB_BYTES\)"):
        render_job(job, large)


def header(item: Any, size: int = 8, texts: Any = None) -> bytes:
    """A safetensors file whose one tensor is described so."""
    text = item if isinstance(item, bytes) else json.dumps({"__metadata__": texts or {}, "a": item}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


ABSURD = [
    pytest.param({"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}, "expected counts", id="negative"),
    pytest.param({"dtype": "F32", "shape": [1] * 10**6 + [2], "data_offsets": [0, 8]}, "1000001 axes", id="million"),
    pytest.param({"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}, "asks for", id="huge-and-empty"),
    pytest.param({"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}, "expected counts", id="true"),
    pytest.param({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, "expected counts", id="float"),
    pytest.param({"dtype": "F32", "shape": {"a": 2}, "data_offsets": [0, 8]}, "expected counts", id="mapping"),
    pytest.param({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "misplaces", id="offset"),
    pytest.param({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "no readable", id="type"),
    pytest.param(b'{"a":' + DEEP.encode() + b"}", "deeper than 100 levels", id="depth"),
]


@pytest.mark.parametrize(("item", "told"), ABSURD)
def test_a_header_that_describes_no_tensor_is_refused_by_every_reader(tmp_path: Path, item: Any, told: str) -> None:
    data = header(item, 0 if isinstance(item, dict) and item["data_offsets"] == [0, 0] else 8)
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=told):
        parse_header(data, len(data), "w")
    for read in (read_local_header, read_weights):
        with pytest.raises(CheckpointError, match=told):
            read(path)


def test_a_header_longer_than_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**40 + 8)
    with pytest.raises(CheckpointError, match=r"at most 33554432 are read \(MAX_HEADER_BYTES\)"):
        read_weights(path)


@pytest.mark.parametrize("offsets", ["[-1]", "[0, 0]", '{"a": 1}', "[true]", "[" * 500 + "]" * 500])
def test_a_shard_says_soundly_where_it_begins(offsets: str) -> None:
    texts = {"DCP_SHARDING_INFO": f'{{"a": {{"saved_offsets": {offsets}}}}}'}
    data = header({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, texts=texts)
    with pytest.raises(CheckpointError, match="does not say where"):
        parse_header(data, len(data), "w").offsets("a")


@pytest.mark.parametrize("shape", [(-1, -2), (1,) * 10**5, (2**62, 2**62)])
def test_metadata_describe_tensors_that_can_be(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        TensorRecord(dtype="F32", shape=shape)


def test_deep_metadata_are_damaged_metadata(tmp_path: Path) -> None:
    store = open_store(tmp_path / "step-00000001")
    store.put("checkpoint_metadata.json", b'{"schema": "stageline/2", "facts": ' + DEEP.encode() + b"}")
    with pytest.raises(CheckpointError, match="deeper than 100 levels"):
        open_checkpoint(store)


def split_of(tmp_path: Path, line: bytes) -> SplitReader:
    """A split of one row whose line says so, in files that their names are the hashes of."""
    record = np.zeros(1, row_type({}))
    record["@line_bytes"] = len(line)
    names = {}
    for kind, data in {"rows": record.tobytes(), "lines": line}.items():
        names[kind] = f"{hashlib.sha256(data).hexdigest()}.{kind}"
        (tmp_path / names[kind]).write_bytes(data)
    sizes = {names["rows"]: record.nbytes, names["lines"]: len(line)}
    manifest = SplitManifest("train", "toy", "f", "d", {}, "data", 1, {}, names["rows"], names["lines"], (), sizes)
    return SplitReader(manifest, StoredFiles(open_store(tmp_path)))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"arrays": {}, "fields": ' + DEEP + "}", "deeper than 100 levels"),
        ('{"arrays": {"a": ["<f4", ' + str([1] * 10**5) + ', 0]}, "fields": {}}', "100000 axes"),
        ('{"arrays": {"a": ["<f4", [0, 4611686018427387904, 4611686018427387904], 0]}, "fields": {}}', "asks for"),
        ('{"arrays": {"a": ["<f4", [-1, -2], 0]}, "fields": {}}', "expected counts"),
    ],
)
def test_a_row_of_a_split_asks_for_no_more_than_there_is(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        split_of(tmp_path, line.encode()).arrays(0)
    assert len(caught.value.message) < 1000


def test_a_number_of_any_length_is_no_value() -> None:
    assert read_json("[1e5, 340282366920938463463374607431768211456]") == [1e5, 2**128]
    with pytest.raises(ValueError, match="a number of 401 digits, at most 300 are read"):
        read_json(f'{{"a": {10**400}}}')


def test_an_index_of_features_and_a_manifest_are_bounded_too() -> None:
    entry = ["F32", [0, 2**62, 2**62], 0, "a" * 64, {}]
    plain = {
        "schema": "stageline-features/2",
        "arrays": f"{'a' * 64}.safetensors",
        "size": 9,
        "entries": {"b" * 64: entry},
    }
    with pytest.raises(ValueError, match="asks for"):
        parse_index(json.dumps(plain).encode())
    with pytest.raises(DataError, match="deeper than 100 levels"):
        parse_manifest(DEEP.encode(), "here")


def read_scene(path: Path) -> Any:
    return read_torch_file(path, what="a scene")


def test_a_torch_file_stretches_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"small": torch.zeros(1).expand(9), "w": torch.zeros(1).expand(2**40)}}, path)
    for read in (load_torch_file, read_weights, read_scene):
        with pytest.raises(
            (CheckpointError, ValueError), match=r"'.*w' asks for 4398046511104 bytes, the file holds 4"
        ):
            read(path)


def tangle() -> Any:
    """A million million lists in a few hundred bytes."""
    value: Any = [torch.zeros(1)]
    for _ in range(12):
        value = [value] * 10
    return value


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(lambda: {f"w{n}": torch.zeros(1).expand(2**22) for n in range(99)}, "all tensors ask", id="many"),
        pytest.param(lambda: {"w": torch.zeros(2, 2).to_sparse()}, "'w' is no plain tensor", id="sparse"),
        pytest.param(lambda: {"w": torch.zeros(2**40, device="meta")}, "'w' is no plain tensor", id="without-numbers"),
        pytest.param(lambda: {"w": torch.zeros(1), "x": tangle()}, "values|more than tensors", id="tangled"),
        pytest.param(lambda: {"w": torch.zeros(1), "x": endless()}, "itself|more than tensors", id="in-itself"),
    ],
)
def test_a_torch_file_asks_for_no_more_than_it_holds(tmp_path: Path, content: Any, told: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(content(), path)
    for read in (load_torch_file, read_weights, read_scene):
        with pytest.raises((CheckpointError, ValueError), match=told):
            read(path)


@pytest.mark.parametrize(
    ("compression", "pickled", "told"),
    [
        (zipfile.ZIP_DEFLATED, b"", "unpacked, the file has"),
        (zipfile.ZIP_STORED, b"cbuiltins\nbytearray\n", "it holds a bytearray"),
        (zipfile.ZIP_STORED, b"ctorch\nByteTensor\n", "asks for 1073741824 bytes, the file holds"),
    ],
    ids=["packed", "a-bytearray-by-its-size", "a-tensor-by-its-size"],
)
def test_a_torch_file_fills_no_memory_by_a_number(tmp_path: Path, compression: int, pickled: bytes, told: str) -> None:
    torch.save({"w": torch.zeros(2**16)}, tmp_path / "plain.pt")
    made = b"\x80\x02}X\x01\x00\x00\x00w" + pickled + b"\x8a\x05" + struct.pack("<Q", 2**30)[:5] + b"\x85Rs."
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(path, "w", compression) as forged:
        for entry in plain.infolist():
            data = made if pickled and entry.filename.endswith("data.pkl") else plain.read(entry)
            forged.writestr(entry.filename, data)
    for read in (load_torch_file, read_weights, read_scene):
        with pytest.raises((CheckpointError, ValueError), match=told):
            read(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b"")
    )


def webp(kind: bytes, data: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(width: int, height: int) -> bytes:
    """Two pictures of one pixel on a large screen."""
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + picture * 2 + b"\x3b"


def tiff(tile: int) -> bytes:
    """A picture of ten pixels a side in one packed tile."""
    data = zlib.compress(bytes(99))
    tags = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8 + 2 + 10 * 12 + 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {325: len(data)}).items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + entries + struct.pack("<I", 0) + data


LARGE = {
    "png": png(30_000, 30_000),
    "webp": webp(b"VP8X", bytes(4) + (16_000).to_bytes(3, "little") * 2),
    "lossy.webp": webp(b"VP8 ", b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", 16_000, 16_000)),
    "lossless.webp": webp(b"VP8L", b"\x2f" + (15_999 | 15_999 << 14).to_bytes(4, "little") + bytes(5)),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_picture_is_judged_by_its_header_in_every_family(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    path.write_bytes(LARGE[name])
    with pytest.raises(DataError, match=r"pixels, expected at most 89478485 \(data.max_pixels\)"):
        read_file(path)
    fault = check_panorama(path)
    assert fault is not None
    assert (fault.kind, "data.max_pixels" in fault.message) == ("too_large", True)
    assert "at most 89478485 (--max-pixels)" in picture_fault(path)


def test_further_pictures_are_found_without_a_canvas(tmp_path: Path) -> None:
    """A screen of four thousand million pixels would be filled by whoever looked at the second picture."""
    path = tmp_path / "a.gif"
    path.write_bytes(gif(65_535, 65_535))
    with pytest.raises(DataError, match="89478485"):
        read_file(path)
    faults = Faults(DataError, "pictures")
    assert _header(path, faults) is None
    assert "holds 2 pictures or more" in faults.found[0]


def test_a_progressive_jpeg_has_few_scans(tmp_path: Path) -> None:
    """Half a megabyte of them took a quarter of a minute, ten times as many ten times that."""
    path, file = tmp_path / "a.jpg", io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    path.write_bytes(data)
    assert read_file(path).pixels.shape == (64, 64, 3)
    last = data[data.rfind(b"\xff\xda") : -2]
    path.write_bytes(data[:-2] + last * 300 + data[-2:])
    with pytest.raises(DataError, match="MAX_SCANS"):
        read_file(path)


def test_a_tile_larger_than_its_picture_is_judged_too(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(16_384))
    with pytest.raises(DataError, match="tiles of 16384 x 16384 pixels, expected at most 89478485"):
        read_file(path)


def stripped(order: str, *, big: bool, further: bool, strips: int) -> bytes:
    """A picture of ten pixels a side, or a second one behind it, said to lie in that many strips."""
    mark = b"II" if order == "<" else b"MM"
    word, head = ("Q", struct.pack(f"{order}HHHQ", 43, 8, 0, 16)) if big else ("I", struct.pack(f"{order}HI", 42, 8))
    entry, count, data = f"{order}HH{word}{word}", f"{order}{'Q' if big else 'H'}", mark + head
    base = {256: 10, 257: 10, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    for is_last in (False, True) if further else (True,):
        many = strips if is_last else 1
        size = struct.calcsize(count) + struct.calcsize(entry) * (len(base) + 2) + struct.calcsize(f"{order}{word}")
        values = len(data) + size
        tags = [(tag, 4, 1, value) for tag, value in base.items()]
        tags += [(273, 4, many, values if many > 1 else 8), (279, 4, many, values if many > 1 else 100)]
        data += struct.pack(count, len(tags))
        for tag, kind, number, value in tags:
            packed = struct.pack(f"{order}I", value).ljust(8 if big else 4, b"\0")
            inside = struct.pack(f"{order}{word}", value) if number > 1 else packed
            data += struct.pack(f"{order}HH{word}", tag, kind, number) + inside
        data += struct.pack(f"{order}{word}", 0 if is_last else values)
    return data + bytes(4 * strips)


@pytest.mark.parametrize("further", [False, True], ids=["the first", "the second"])
@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)], ids=["II", "MM", "big"])
def test_a_tiff_has_few_strips(tmp_path: Path, order: str, big: bool, further: bool) -> None:
    """Two million took 21 seconds and a gigabyte before a pixel was looked at."""
    path = tmp_path / "a.tif"
    path.write_bytes(stripped(order, big=big, further=further, strips=2**18 + 1))
    with pytest.raises(DataError, match=r"262145 strips or tiles, expected at most 262144 \(MAX_PIECES\)"):
        read_file(path)


def test_a_tiff_of_many_strips_and_pages_that_go_round_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for options in ({"tiffinfo": {278: 1}}, {"big_tiff": True}):
        Image.new("L", (8, 3000), 7).save(path, **options)
        assert read_file(path).pixels.shape[:2] == (3000, 8)
    Image.new("L", (8, 8), 7).save(path)
    data = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<I", data, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], start)
    path.write_bytes(data)
    assert read_file(path).pixels.shape[:2] == (8, 8)


def test_a_mesh_describes_no_more_than_is_read(tmp_path: Path) -> None:
    from stageline.families.sparse_structure.data.meshes import MAX_FACES, read_mesh

    many = {
        "accessors": [{"count": 3 * MAX_FACES, "componentType": 5126, "type": "VEC3"}] * 20,
        "asset": {"version": "2.0"},
    }
    path = tmp_path / "a.gltf"
    path.write_text(json.dumps(many), encoding="utf-8")
    with pytest.raises(DataError, match="MAX_COUNTS"):
        read_mesh(path)
    part = {"attributes": {"POSITION": 0}}
    shared = {"accessors": [{"count": MAX_FACES}], "meshes": [{"primitives": [part] * 99}]}
    path.write_text(json.dumps(shared), encoding="utf-8")
    with pytest.raises(DataError, match=r"its parts use 198000000 points.*MAX_COUNTS"):
        read_mesh(path)
    path.write_text(json.dumps({"nodes": [{"children": [n + 1]} for n in range(200)] + [{}]}), encoding="utf-8")
    with pytest.raises(DataError, match="nested deeper than 100 levels"):
        read_mesh(path)


def test_no_picture_of_a_mesh_is_opened_and_no_log_of_its_reader_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from stageline.families.sparse_structure.data.meshes import read_mesh

    head = "".join(f"property float {axis}\n" for axis in "xyz")
    path = tmp_path / "a.ply"
    path.write_text(
        f"ply\nformat ascii 1.0\ncomment TextureFile large.png\nelement vertex 3\n{head}element face 1\n"
        "property list uchar int vertex_indices\nend_header\n0 0 0\n1 0 1\n0 1 0\n3 0 1 2\n"
    )
    (tmp_path / "large.png").write_bytes(b"no picture")
    assert len(read_mesh(path).faces) == 1
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "read", "limit"),
    [
        ("run/run.json", lambda path: list_runs(open_store(path.parents[2])), "1073741824"),
        ("prompts.json", lambda path: read_prompts(path, {"a"}), "67108864"),
        ("tokenizer.json", lambda path: load_tokenizer(path.parent), "67108864"),
        ("scenes.txt", lambda path: list_scenes(path.parent, None), "67108864"),
        ("scene.json", lambda path: read_scene_file(path, path.parent), "4194304"),
        ("table.csv", lambda path: read_rows([path], lambda *_: None, with_text=False), "4,194,304"),
    ],
)
def test_a_text_is_not_read_beyond_the_limit(tmp_path: Path, name: str, read: Any, limit: str) -> None:
    path = tmp_path / "runs" / name
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(b"image\n" if name == "table.csv" else b"")
        file.truncate(2**40)  # takes up no room
    try:
        told = str(read(path))
    except (StagelineError, ValueError) as error:
        told = str(error)
    assert limit in told


TRUSTED = {"build.py", "config/bounds.py", "pipeline/host.py"}
"""What this copy of stageline or a parent process says of itself."""


def test_every_reader_of_foreign_json_and_yaml_keeps_the_limits() -> None:
    """What is read back of `json.dumps` and of a model was made a moment before."""
    foreign = re.compile(r"json\.loads?\((?!.*(json\.dumps|model_dump_json)\()|yaml\.safe_load")
    texts = ((path, path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py"))
    assert {path.relative_to(SOURCE).as_posix() for path, text in texts if foreign.search(text)} == TRUSTED

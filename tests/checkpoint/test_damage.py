"""Every kind of damage is refused, by admission and by reading: none loads, none is repaired in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stageline.checkpoint.admission import account, admit
from stageline.checkpoint.header import build_header, parse_header
from stageline.checkpoint.layout import CheckpointRef, StageDir, resolve
from stageline.checkpoint.metadata import METADATA_NAME, FileRecord, digest_of
from stageline.checkpoint.tensors import read_named, read_tensors, records_of
from stageline.checkpoint.verify import verify
from stageline.config import seal_of
from stageline.errors import CheckpointError
from tests.checkpoint.samples import FACTS, equal, save, snapshot, tensors, writing


def use(ref: CheckpointRef) -> dict[str, Tensor]:
    """What a resume does with a checkpoint before the model changes: admit, account, read."""
    admit(ref, "resume", family="film_flow", stages=["film"], facts=FACTS, rules={})
    account(records_of(tensors(0)), ref.metadata.tensors["model"], where=ref.uri)
    read_named(ref, "training/optimizer.safetensors", "training/optimizer", "training")
    read_tensors(ref, "ema")
    return read_tensors(ref)


def folder(ref: CheckpointRef) -> Path:
    path = ref.store.local_path()
    assert path is not None
    return path


@pytest.fixture
def ref(directory: StageDir) -> CheckpointRef:
    """A good checkpoint of step 5, after one of step 4."""
    return save(directory, 4, 5)[1]


def test_an_undamaged_checkpoint_is_let_in(ref: CheckpointRef) -> None:
    assert equal(use(ref), tensors(5))


# 1-4 of the nine: whole checkpoints of another model.
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(lambda t: {**t, "extra": torch.zeros(1)}, "extra: in the file, not in the model", id="extra-key"),
        pytest.param(
            lambda t: {k: v for k, v in t.items() if k != "film.2.fc"},
            "film.2.fc: in the model, not in the file",
            id="missing-key",
        ),
        pytest.param(
            lambda t: {**t, "backbone.weight": t["backbone.weight"].half()}, "dtype F16 in the file", id="other-dtype"
        ),
        pytest.param(
            lambda t: {**t, "backbone.weight": t["backbone.weight"].reshape(3, 5)},
            r"shape \[3, 5\] in the file, \[5, 3\] in the model",
            id="other-shape-same-count",
        ),
    ],
)
def test_another_model_is_refused(
    directory: StageDir, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], fault: str
) -> None:
    with writing(directory) as writer:
        ref = writer.save(snapshot(6, tensors=change(tensors(6))))
    with pytest.raises(CheckpointError, match=fault):
        use(ref)


# 5
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_refused(ref: CheckpointRef, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*sorted(ref.metadata.files), METADATA_NAME]))
    path = folder(ref) / name
    good = path.read_bytes()
    bit = data.draw(st.integers(0, len(good) * 8 - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bad)
    try:
        assert verify(ref) != []
        with pytest.raises(CheckpointError):
            use(ref)
        if name == METADATA_NAME:
            # Without the digest at hand the seal must find it out.
            with pytest.raises(CheckpointError):
                use(resolve(ref.uri))
    finally:
        path.write_bytes(good)


def test_reading_alone_finds_a_flipped_bit_of_the_data(ref: CheckpointRef) -> None:
    """A file may change between admission and reading: nothing is handed out unverified."""
    for name, read in (
        ("model.safetensors", lambda: read_tensors(ref)),
        ("ema.safetensors", lambda: read_tensors(ref, "ema")),
        (
            "training/optimizer.safetensors",
            lambda: read_named(ref, "training/optimizer.safetensors", "training/optimizer", "training"),
        ),
    ):
        path = folder(ref) / name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=f"{name}: its bytes changed"):
            read()
        path.write_bytes(good)
        read()


# 6
@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "training/optimizer.safetensors", METADATA_NAME]
)
def test_a_truncated_file_is_refused(ref: CheckpointRef, name: str) -> None:
    path = folder(ref) / name
    data = path.read_bytes()
    for length in (len(data) - 1, 20, 3, 0):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            use(ref)
        assert verify(ref) != []


# 7
def test_without_its_commit_marker_a_checkpoint_does_not_exist(directory: StageDir, ref: CheckpointRef) -> None:
    (folder(ref) / METADATA_NAME).unlink()
    with pytest.raises(CheckpointError, match="never committed"):
        resolve(ref.uri)
    with pytest.raises(CheckpointError):
        use(ref)
    assert [other.metadata.step for other in directory.committed()] == [4]


# 8
def test_a_first_save_that_died_leaves_no_checkpoint(directory: StageDir) -> None:
    directory.store.put("checkpoints/step-00000001/claim.json", b"{}")
    directory.store.put("checkpoints/step-00000001/model.safetensors", b"half a file")
    for name in (directory.uri, f"{directory.uri}/last.ckpt"):
        with pytest.raises(CheckpointError, match="no committed checkpoint"):
            resolve(name, prefer="last")
    assert directory.committed() == []
    assert directory.newest() is None


# 9
def test_a_later_save_that_died_leaves_the_earlier_one(directory: StageDir, ref: CheckpointRef) -> None:
    half = folder(ref).with_name("step-00000006")
    shutil.copytree(folder(ref), half)
    (half / METADATA_NAME).unlink()
    assert equal(use(resolve(directory.uri, prefer="last")), tensors(5))


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "training/state.json"])
def test_a_mixture_of_two_steps_is_refused(directory: StageDir, ref: CheckpointRef, name: str) -> None:
    earlier = directory.committed()[0]
    shutil.copyfile(folder(earlier) / name, folder(ref) / name)
    with pytest.raises(CheckpointError, match=r"its bytes changed|bytes, expected"):
        use(ref)


def rewritten(ref: CheckpointRef, change: Callable[[dict[str, object]], None], *, sealed: bool) -> CheckpointRef:
    """Tamper with the metadata; `sealed` also mends the seal, as somebody would who knows it."""
    path = folder(ref) / METADATA_NAME
    plain = json.loads(path.read_bytes())
    change(plain)
    if sealed:
        plain["seal"] = seal_of(plain)
    path.write_bytes(json.dumps(plain).encode())
    return ref


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p: p.update(step=9), id="step"),
        pytest.param(lambda p: p["facts"].update(vlm_film_trained_stages=[0, 1]), id="facts"),
        pytest.param(lambda p: p["files"].pop("ema.safetensors"), id="file-left-out"),
        pytest.param(lambda p: p["files"]["model.safetensors"].update(sha256="0" * 64), id="wrong-hash"),
        pytest.param(lambda p: p["tensors"]["model"].update(x=p["tensors"]["model"].pop("mask")), id="renamed-tensor"),
        pytest.param(lambda p: p["tensors"]["model"]["count"].update(dtype="I32"), id="dtype"),
    ],
)
def test_tampered_metadata_is_refused(
    directory: StageDir, ref: CheckpointRef, change: Callable[[dict[str, object]], None], sealed: bool
) -> None:
    rewritten(ref, change, sealed=sealed)
    # Whoever knows the digest (pointers, parent links, references) meets another checkpoint.
    for named in (directory.uri, f"{directory.uri}/last.ckpt", str(ref.reference)):
        with pytest.raises(CheckpointError, match="another checkpoint"):
            resolve(named, prefer="last")
    # A bare directory name is caught by the seal, and behind it by the files themselves.
    with pytest.raises(
        CheckpointError, match=r"header against metadata|file against metadata|not in the metadata|changed"
    ):
        use(resolve(ref.uri))


def with_header(ref: CheckpointRef, change: Callable[[dict[str, str], dict[str, object]], None]) -> CheckpointRef:
    """Rewrite the model's header and make metadata, hash and seal fit it: only the agreement can tell."""
    path = folder(ref) / "model.safetensors"
    data = path.read_bytes()
    header = parse_header(data, len(data), "model")
    texts, records = dict(header.texts), dict(header.records)
    change(texts, records)  # type: ignore[arg-type]
    begin, order = build_header(records, texts)
    assert len(order) == len(header.spans)
    path.write_bytes(begin + data[header.size :])
    record = FileRecord(bytes=path.stat().st_size, sha256=digest_of(path.read_bytes()))
    rewritten(ref, lambda plain: plain["files"].update({"model.safetensors": record.model_dump()}), sealed=True)  # type: ignore[attr-defined]
    return resolve(ref.uri)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(lambda t, _: t.update(step="6"), "header against metadata: step", id="step"),
        pytest.param(lambda t, _: t.update(family="champ"), "header against metadata: family", id="family"),
        pytest.param(lambda t, _: t.update(role="ema"), "header against metadata: role", id="role"),
        pytest.param(
            lambda t, _: t.update(vlm_film_trained_stages="[0,1]"), "metadata: vlm_film_trained_stages", id="fact"
        ),
        pytest.param(lambda t, _: t.pop("decoder_channels"), "metadata: decoder_channels", id="fact-gone"),
        pytest.param(lambda _, r: r.update({"film.1.half": r.pop("film.3.half")}), "film.3.half", id="renamed-tensor"),
    ],
)
def test_a_tampered_header_is_refused_although_every_hash_fits(
    ref: CheckpointRef, change: Callable[[dict[str, str], dict[str, object]], None], fault: str
) -> None:
    tampered = with_header(ref, change)
    with pytest.raises(CheckpointError, match=fault):
        use(tampered)
    with pytest.raises(CheckpointError, match=fault):
        read_tensors(tampered)


def test_a_stranger_among_the_files_is_told(ref: CheckpointRef) -> None:
    (folder(ref) / "notes.txt").write_text("mine")
    assert verify(ref) == ["notes.txt: not in the metadata"]


def test_all_faults_are_told_at_once(ref: CheckpointRef) -> None:
    (folder(ref) / "ema.safetensors").unlink()
    (folder(ref) / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        admit(ref, "resume", family="film_flow", stages=["backbone"], facts={**FACTS, "use_junction": True}, rules={})
    for part in ("stage: checkpoint 'film'", "use_junction", "ema.safetensors: missing", "model.safetensors: 1 bytes"):
        assert part in caught.value.message


@pytest.mark.parametrize("data", [b"", b"\x08", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}x"])
def test_what_is_no_safetensors_header_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse_header(data, len(data), "file")


@pytest.mark.parametrize("offsets", [[0, 8], [0, 3], [4, 8], [-4, 0]], ids=["too-long", "too-short", "gap", "negative"])
def test_a_header_that_misplaces_a_tensor_is_refused(offsets: list[int]) -> None:
    text = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
    data = len(text).to_bytes(8, "little") + text + b"\0" * max(0, offsets[1])
    with pytest.raises(CheckpointError, match="misplaces"):
        parse_header(data, len(data), "file")

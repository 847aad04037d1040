"""Checkpoints written by two ranks: safetensors only, whole, refused when damaged, readable by one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from guards import HANG_SECONDS

from stageline.checkpoint.export import export
from stageline.checkpoint.layout import CheckpointRef, StageDir, resolve
from stageline.checkpoint.metadata import METADATA_NAME
from stageline.checkpoint.sharded import load_sharded, save_sharded
from stageline.checkpoint.tensors import join_shards, read_tensors
from stageline.checkpoint.verify import verify
from stageline.errors import CheckpointError
from stageline.store import Store
from tests.checkpoint.samples import equal, snapshot, tensors, writing

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """One run of two ranks for all tests here: starting them is what costs."""
    root = tmp_path_factory.mktemp("sharded")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(root)]
    ranks = [subprocess.Popen([*command, rank], stderr=subprocess.PIPE, text=True, env=environment) for rank in "01"]
    try:
        told = [rank.communicate(timeout=HANG_SECONDS)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(told)[-6000:]
    return root, [json.loads((root / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture
def ref(drill: tuple[Path, list[dict[str, Any]]]) -> Iterator[CheckpointRef]:
    found = resolve(str(drill[0] / "runs" / "a" / "film"), prefer="last")
    assert verify(found) == []
    yield found
    assert verify(found) == []


def test_ranks_load_what_ranks_saved(drill: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in drill[1]:
        assert found["loaded equals saved"]
        assert found["optimizer equals saved"]
        assert found["mended"] == "loaded"


@pytest.mark.parametrize(
    "damage",
    [
        "key missing in the file",
        "key missing in the model",
        "other dtype",
        "other shape",
        "mixture of steps",
        "flipped bit",
        "truncated",
    ],
)
def test_damage_is_refused_by_both_ranks(drill: tuple[Path, list[dict[str, Any]]], damage: str) -> None:
    assert [found[damage] for found in drill[1]] == ["checkpoint", "checkpoint"]


def test_a_rank_without_room_keeps_all_from_committing(drill: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (found["a rank without room"] for found in drill[1])
    assert (first, second) == ("peer_lost", "disk_full")
    assert drill[1][0]["left"] == drill[1][1]["left"] == [1, 2]


def test_no_pickle_is_written(ref: CheckpointRef, drill: tuple[Path, list[dict[str, Any]]]) -> None:
    names = [info.key for info in ref.store.list()]
    assert {Path(name).suffix for name in names} == {".safetensors", ".json"}
    assert sorted(names) == drill[1][0]["files"]
    for name in names:
        head = ref.store.get(name)[:4]
        assert not head.startswith((b"PK", b"\x80")), name


def test_one_process_reads_the_shards_as_whole_tensors(
    ref: CheckpointRef, drill: tuple[Path, list[dict[str, Any]]]
) -> None:
    torch.manual_seed(2)
    one, two = torch.nn.Linear(5, 3), torch.nn.Linear(3, 1, bias=False)
    expected = {
        "one.weight": one.weight.detach(),
        "one.bias": one.bias.detach(),
        "two.weight": two.weight.detach(),
        "strength": torch.tensor(0.25),
        "seen": torch.arange(4),
    }
    whole, averaged = read_tensors(ref), read_tensors(ref, "ema")
    assert whole.keys() == averaged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(whole[name], tensor), name
        assert torch.equal(averaged[name], tensor * 2), name
    assert torch.equal(join_shards(ref, "training/optimizer")["exp_avg.one.weight"], expected["one.weight"] * 3)
    assert drill[1][0]["whole"] == {name: list(tensor.shape) for name, tensor in expected.items()}


def test_one_process_may_continue_what_two_began(ref: CheckpointRef) -> None:
    state = {name: torch.zeros_like(tensor) for name, tensor in read_tensors(ref).items()}
    load_sharded(ref, "model", state)
    assert all(torch.equal(state[name], tensor) for name, tensor in read_tensors(ref).items())


def test_shards_travel_through_a_store_that_is_no_disk(root: Store) -> None:
    """One process, no group: scratch space, upload, verified download."""
    directory = StageDir(root, "a", "film")
    state = {name: tensor.contiguous() for name, tensor in tensors(1).items()}
    with writing(directory) as writer:
        ref = save_sharded(
            directory, writer, snapshot(1, tensors={}, ema=None, training_tensors={}), {"model": state, "ema": state}
        )
    assert verify(ref) == []
    assert resolve(directory.uri).digest == ref.digest
    assert equal(read_tensors(ref, "ema"), state)
    own = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    load_sharded(ref, "model", own)
    assert equal(own, state)


def test_a_missing_or_flipped_shard_is_refused_by_one_process(ref: CheckpointRef) -> None:
    name = next(name for name in sorted(ref.metadata.files) if name.startswith("model/"))
    path = ref.store.local_path(name)
    assert path is not None
    good = path.read_bytes()
    try:
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(CheckpointError, match="its bytes changed"):
            read_tensors(ref)
        path.unlink()
        with pytest.raises(CheckpointError, match="missing"):
            read_tensors(ref)
        assert any("missing" in fault for fault in verify(ref))
    finally:
        path.write_bytes(good)


def test_a_shard_the_metadata_forgot_is_noticed_by_the_uncovered_elements(ref: CheckpointRef) -> None:
    name = next(name for name in sorted(ref.metadata.files) if name.startswith("model/"))
    files = {key: record for key, record in ref.metadata.files.items() if key != name}
    with pytest.raises(CheckpointError, match="elements"):
        read_tensors(CheckpointRef(ref.store, ref.digest, ref.metadata.model_copy(update={"files": files})))


def test_an_export_of_shards_is_one_file(ref: CheckpointRef, tmp_path: Path) -> None:
    target = export(ref, tmp_path / "out", weights="raw")
    import safetensors.torch

    exported = safetensors.torch.load_file(target / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in read_tensors(ref).items())
    assert (target / METADATA_NAME).is_file()

"""From a snapshot to a checkpoint and back, on every store."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from stageline.checkpoint.commit import CheckpointWriter
from stageline.checkpoint.layout import StageDir, open_checkpoint, resolve
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import METADATA_NAME, ParentRecord
from stageline.checkpoint.tensors import fill, load_state, read_named, read_tensors, write_tensors
from stageline.checkpoint.verify import verify
from stageline.config import RetentionConfig
from stageline.errors import BusyError, CheckpointError
from stageline.store import Store, open_store
from tests.checkpoint.samples import equal, expire_lease, measured, provenance, save, snapshot, tensors, writing


def test_what_is_saved_is_read_back_bit_for_bit(root: Store) -> None:
    directory = StageDir(root, "a", "film")
    (ref,) = save(directory, 7)
    again = resolve(f"{directory.uri}/last.ckpt")
    assert again.reference == ref.reference
    assert equal(read_tensors(again), tensors(7))
    assert equal(read_tensors(again, "ema"), tensors(1007))
    state = read_named(again, "training/optimizer.safetensors", "training/optimizer", "training")
    assert torch.equal(state["exp_avg.backbone.weight"], torch.full((5, 3), 7.0))
    assert json.loads(again.store.get("training/state.json")) == {"step": 7, "groups": [{"lr": 0.1}]}
    assert again.store.get("config.yaml") == b"family: film_flow\n"
    assert verify(again) == []


def test_the_same_tensors_are_committed_again_with_what_is_known_later(root: Store) -> None:
    directory = StageDir(root, "a", "film")
    with writing(directory) as writer:
        before = writer.save(snapshot(7, training_state={"due": True}))
        later = measured(7, 0.5, 0.5, 7, tensors={}, ema=None, training_tensors={}, training_state={"due": False})
        ref = writer.save_again(before, later)
        assert resolve(directory.uri).digest == resolve(f"{directory.uri}/last.ckpt").digest == ref.digest
        assert directory.step_dirs() == [ref.name] != [before.name]
        (left,) = directory.survey().refs
    assert (left.metadata.metrics, left.content) == ({"dice": 0.5}, before.content)
    assert json.loads(left.store.get("training/state.json")) == {"due": False}
    assert verify(left) == []
    assert equal(read_tensors(left), tensors(7))
    assert equal(read_tensors(left, "ema"), tensors(1007))


def test_the_safetensors_library_and_ours_read_each_other(tmp_path: Path) -> None:
    own = {name: tensor.contiguous() for name, tensor in tensors(3).items()}
    store = open_store(tmp_path)
    write_tensors(store, "ours.safetensors", tensors(3), {"format": "pt", "word": "ünï"})
    assert equal(safetensors.torch.load_file(tmp_path / "ours.safetensors"), own)
    with safetensors.safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "word": "ünï"}
    safetensors.torch.save_file(own, tmp_path / "theirs.safetensors", {"format": "pt"})
    theirs, ours = (tmp_path / f"{name}.safetensors" for name in ("theirs", "ours"))
    assert ours.stat().st_size % 8 == theirs.stat().st_size % 8
    from stageline.checkpoint.metadata import FileRecord, digest_of
    from stageline.checkpoint.tensors import read_file

    data = theirs.read_bytes()
    read, _ = read_file(store, "theirs.safetensors", FileRecord(bytes=len(data), sha256=digest_of(data)))
    assert equal(read, own)


def test_every_dtype_survives(tmp_path: Path) -> None:
    from stageline.checkpoint.tensors import DTYPES, read_file

    values = {name: torch.arange(6).to(dtype) for name, dtype in DTYPES.items()}
    store = open_store(tmp_path)
    record = write_tensors(store, "all.safetensors", values, {})
    read, _ = read_file(store, "all.safetensors", record)
    for name, dtype in DTYPES.items():
        assert read[name].dtype == dtype
        assert torch.equal(read[name].view(torch.uint8), values[name].view(torch.uint8)), name


def test_metadata_is_written_after_every_file_and_pointers_after_it(
    directory: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    verbs = {"put": Store.put, "create": Store.create, "replace": Store.replace}

    def noting(verb: str) -> Any:
        def noted(self: Store, key: str, *data: Any) -> Any:
            result = verbs[verb](self, key, *data)
            order.append(f"{self.uri.removeprefix(directory.uri)}/{key}")
            return result

        return noted

    with writing(directory) as writer:
        for verb in verbs:
            monkeypatch.setattr(Store, verb, noting(verb))
        writer.save(snapshot(5))
    at = order.index(f"/checkpoints/step-00000005/{METADATA_NAME}")
    files = {"model.safetensors", "ema.safetensors", "training/optimizer.safetensors", "training/state.json"}
    assert {name.split("step-00000005/")[-1] for name in order[:at]} == {*files, "config.yaml", "claim.json"}
    assert order[at + 1 : at + 3] == ["/last.ckpt", "/best.ckpt"]


def test_a_taken_step_directory_is_never_written_into_again(root: Store) -> None:
    directory = StageDir(root, "a", "film")
    (first,) = save(directory, 5)
    before = {info.key: (info.size, info.token) for info in first.store.list()}
    (second,) = save(directory, 5)
    assert (first.name, second.name) == ("step-00000005", "step-00000005-2")
    assert {info.key: (info.size, info.token) for info in first.store.list()} == before
    assert [ref.name for ref in directory.committed()] == ["step-00000005", "step-00000005-2"]


def test_two_writers_never_get_the_same_directory(root: Store) -> None:
    """Even if both believed in their lease: claims are conditional creations."""
    directory = StageDir(root, "a", "film")
    with writing(directory) as writer:
        names = [writer.claim(5) for _ in range(4)]
    assert len(set(names)) == 4


def test_best_follows_the_metric_and_last_the_time(directory: StageDir) -> None:
    with writing(directory) as writer:
        writer.save(measured(10, 0.5, 0.5, 10))
        writer.save(measured(20, 0.8, 0.8, 20))
        writer.save(measured(30, 0.6, 0.8, 20))
    best, last = directory.pointer("best"), directory.pointer("last")
    assert best is not None
    assert last is not None
    assert (best.metadata.step, last.metadata.step) == (20, 30)
    assert resolve(directory.uri).metadata.step == 20
    assert resolve(directory.uri, prefer="last").metadata.step == 30
    exported = json.loads(directory.store.get(METADATA_NAME))
    assert exported["export_of"] == best.digest


def test_without_a_metric_best_is_the_last(directory: StageDir) -> None:
    save(directory, 10, 20)
    best = directory.pointer("best")
    assert best is not None
    assert best.metadata.step == 20


def test_best_leaves_a_checkpoint_of_other_settings_at_once(directory: StageDir) -> None:
    with writing(directory) as writer:
        writer.save(measured(50, 0.9, 0.9, 50))
    with writing(directory, prov=provenance(stage_fingerprint="0" * 64)) as writer:
        writer.save(measured(10, 0.1, 0.2, 5))
    best, last = directory.pointer("best"), directory.pointer("last")
    assert best is not None
    assert last is not None
    assert best.metadata.step == last.metadata.step == 10
    newest = directory.newest()
    assert newest is not None
    assert newest.metadata.step == 10, "saved last, although at a lower step"


def test_pointers_a_dead_writer_did_not_move_are_mended(directory: StageDir) -> None:
    with writing(directory) as writer:
        writer.save(measured(10, 0.5, 0.5, 10))
        old = {name: directory.store.get(f"{name}.ckpt") for name in ("best", "last")}
        writer.save(measured(20, 0.8, 0.8, 20))
    for name, data in old.items():
        directory.store.put(f"{name}.ckpt", data)
    with writing(directory):
        pass
    for name in ("best", "last"):
        ref = directory.pointer(name)  # type: ignore[arg-type]
        assert ref is not None
        assert ref.metadata.step == 20


def test_without_its_pointer_the_best_is_still_the_best(directory: StageDir) -> None:
    with writing(directory) as writer:
        writer.save(measured(10, 0.8, 0.8, 10))
        writer.save(measured(20, 0.5, 0.8, 10))
        directory.store.delete("best.ckpt")
        found = directory.handed_on("best", "f" * 64)
        assert found is not None
        assert found.metadata.step == 10
        assert directory.handed_on("best", "0" * 64) is None
        writer.save(measured(30, 0.6, 0.8, 10))
    best = directory.pointer("best")
    assert best is not None
    assert best.metadata.step == 10, "the next save mends the pointer"


def test_a_best_that_is_gone_is_refused_with_a_remedy_that_holds(directory: StageDir) -> None:
    with writing(directory) as writer:
        ref = writer.save(measured(10, 0.8, 0.8, 10))
        writer.save(measured(20, 0.5, 0.8, 10))
    directory.store.delete_tree(f"checkpoints/{ref.name}")
    with pytest.raises(CheckpointError, match=r"best\.ckpt names no checkpoint") as caught:
        directory.pointer("best")
    assert f"delete {directory.uri}/best.ckpt" in caught.value.remedy
    with pytest.raises(CheckpointError, match="of step 10 by dice, is gone") as caught:
        directory.handed_on("best", "f" * 64)
    assert "to train the stage again" in caught.value.remedy
    directory.store.delete_tree("checkpoints")
    assert directory.handed_on("best", "f" * 64) is None


def test_leftovers_are_swept_by_the_next_writer(directory: StageDir) -> None:
    save(directory, 5)
    directory.store.put("checkpoints/step-00000009/model.safetensors", b"half")
    with writing(directory):
        pass
    assert [ref.name for ref in directory.committed()] == ["step-00000005"]
    assert not directory.store.exists("checkpoints/step-00000009/model.safetensors")


def test_a_failed_save_leaves_nothing_of_itself(directory: StageDir) -> None:
    save(directory, 5)
    with writing(directory) as writer, pytest.raises(CheckpointError, match="not JSON"):
        writer.save(snapshot(6, training_state={"lr": float("nan")}))
    assert directory.step_dirs() == ["step-00000005"]
    last = directory.pointer("last")
    assert last is not None
    assert verify(last) == []


def test_a_writer_without_its_lease_commits_nothing(directory: StageDir) -> None:
    lease = StageLease.acquire(directory, "slow", keep_renewed=False)
    writer = CheckpointWriter(directory, lease, provenance(), RetentionConfig())
    writer.save(snapshot(1))
    name = writer.claim(2)
    records = writer._write_tensor_files(directory.step_store(name), snapshot(2))
    expire_lease(directory)
    with (
        StageLease.acquire(directory, "quick", keep_renewed=False) as other,
        pytest.raises(BusyError, match="'quick'"),
    ):
        writer.commit(name, snapshot(2), records, {"model": {}})
    assert not directory.step_store(name).exists(METADATA_NAME)
    last = directory.pointer("last")
    assert last is not None
    assert last.metadata.step == 1
    assert other.holder == "quick"


def test_tied_tensors_are_refused_by_name(directory: StageDir) -> None:
    table = torch.randn(4, 4)
    with (
        writing(directory) as writer,
        pytest.raises(CheckpointError, match=r"(?s)a and b share.*a and c share") as caught,
    ):
        writer.save(snapshot(1, tensors={"a": table, "b": table[1:2], "c": table.t()[:, 3], "d": torch.zeros(4)}))
    assert "d" not in caught.value.message.split("share memory")[-1]
    assert directory.step_dirs() == []


def test_facts_of_model_and_config_must_agree_to_be_written(directory: StageDir) -> None:
    facts = dict(provenance().facts)
    with writing(directory) as writer:
        writer.save(snapshot(1, facts=facts))
        with pytest.raises(CheckpointError, match="vlm_film_trained_stages"):
            writer.save(snapshot(2, facts={**facts, "vlm_film_trained_stages": [2]}))


def test_tensor_names_must_prove_the_facts_to_be_written(directory: StageDir) -> None:
    def heads(shapes: object) -> dict[str, object]:
        names = [name for name in shapes if name.startswith("film.")]  # type: ignore[attr-defined]
        return {"vlm_film_trained_stages": sorted({int(name.split(".")[1]) for name in names})}

    with writing(directory, name_facts=heads) as writer:
        writer.save(snapshot(1))
        few = {name: tensor for name, tensor in tensors(2).items() if not name.startswith("film.3")}
        with pytest.raises(CheckpointError, match=r"tensor names say \[2\], metadata \[2, 3\]"):
            writer.save(snapshot(2, tensors=few))
    assert directory.step_dirs() == ["step-00000001"]


def test_a_parent_is_on_record_before_the_first_save(directory: StageDir) -> None:
    parent = ParentRecord(uri="/x", digest="1" * 64, content="2" * 64, stage="backbone", step=3, weights="ema")
    with writing(directory, prov=provenance(parents={"default": parent})):
        assert [ref.digest for ref in directory.recorded_parents()] == ["1" * 64]
    with writing(directory, prov=provenance(parents={"default": parent.model_copy(update={"digest": "3" * 64})})):
        assert [ref.digest for ref in directory.recorded_parents()] == ["1" * 64, "3" * 64]


def test_a_module_is_filled_exactly(directory: StageDir) -> None:
    torch.manual_seed(0)
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    with writing(directory, prov=provenance(facts={})) as writer:
        ref = writer.save(snapshot(1, tensors=one.state_dict(), ema=None))
    assert load_state(other, read_tensors(ref), where=ref.uri) == ("bias", "weight")
    assert torch.equal(one.weight, other.weight)
    assert other.weight.requires_grad
    with pytest.raises(CheckpointError, match="no ema weights"):
        read_tensors(ref, "ema")


def test_what_a_model_is_to_hold_is_read_into_its_memory(directory: StageDir) -> None:
    """Where dtype, shape and layout are alike; else it is read beside and copied. Averaged tensors win there too."""
    raw, averaged = {"a": torch.ones(2, 3), "b": torch.ones(2, 3), "c": torch.ones(4)}, {"a": torch.full((2, 3), 2.0)}
    with writing(directory, prov=provenance(facts={})) as writer:
        ref = writer.save(snapshot(1, tensors=raw, ema=averaged))
    own = {"a": torch.zeros(2, 3), "b": torch.zeros(3, 2).T, "c": torch.zeros(4, dtype=torch.float64)}
    found = read_tensors(ref, "ema", into=own)
    assert [found[name].data_ptr() == own[name].data_ptr() for name in "abc"] == [True, False, False]
    assert equal(own, {"a": averaged["a"], "b": torch.zeros(2, 3), "c": torch.zeros(4, dtype=torch.float64)})
    assert equal(found, {**raw, **averaged})
    fill(own, found)
    assert all(torch.equal(own[name].float(), tensor) for name, tensor in found.items())
    (file,) = Path(ref.uri).glob("model.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="its bytes changed"):
        read_tensors(ref, into=own)


def test_a_save_needs_no_second_copy_of_the_tensors(directory: StageDir) -> None:
    """numpy and Python allocations are traced; torch's own are not made: nothing is cloned."""
    big = {f"w{i}": torch.from_numpy(np.ones(4 * 2**20, dtype=np.float32)) for i in range(4)}
    with writing(directory) as writer:
        tracemalloc.start()
        writer.save(snapshot(1, tensors=big, ema=None))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 * 2**20, "64 MiB of tensors went through less than 8"


def test_content_names_the_weights_and_digest_the_checkpoint(directory: StageDir) -> None:
    first, second = save(directory, 5, 5)
    assert first.digest != second.digest
    assert first.content == second.content
    (third,) = save(directory, 6)
    assert third.content != first.content
    with pytest.raises(CheckpointError, match="another checkpoint"):
        open_checkpoint(first.store, second.digest)

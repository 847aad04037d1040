"""Files of other programs: read without executing anything, refused by name where that does not do."""

from __future__ import annotations

import argparse
import pathlib
from pathlib import Path

import numpy as np
import pytest
import torch

from stageline.checkpoint.admission import admit
from stageline.checkpoint.layout import StageDir, resolve
from stageline.checkpoint.legacy import commit_import, load_torch_file, tensors_of
from stageline.checkpoint.tensors import read_tensors
from stageline.errors import CheckpointError
from tests.checkpoint.samples import FACTS, equal, provenance, tensors


class Trap:
    """Executes on unpickling, if anybody unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return pathlib.Path.touch, (pathlib.Path("/tmp/stageline-trap-was-sprung"),)


def test_plain_files_are_read(tmp_path: Path) -> None:
    content = {"state_dict": {"w": torch.randn(2, 2)}, "hyper_parameters": {"stages": [0, 1], "lr": 0.1, "x": None}}
    torch.save(content, tmp_path / "old.ckpt")
    loaded = load_torch_file(tmp_path / "old.ckpt")
    assert torch.equal(loaded["state_dict"]["w"], content["state_dict"]["w"])  # type: ignore[arg-type,index,call-overload]
    assert loaded["hyper_parameters"] == content["hyper_parameters"]


@pytest.mark.parametrize(
    ("value", "name", "allow"),
    [
        (pathlib.PosixPath("/data"), "pathlib", "pathlib"),
        (np.float64(0.5), "numpy", "numpy"),
        (np.arange(3.0), "numpy", "numpy"),
        (argparse.Namespace(lr=0.1), "argparse.Namespace", "argparse"),
    ],
)
def test_harmless_foreign_values_are_refused_by_name_until_allowed(
    tmp_path: Path, value: object, name: str, allow: str
) -> None:
    torch.save({"value": value}, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match=f"foreign object '{name}") as caught:
        load_torch_file(tmp_path / "old.ckpt")
    assert caught.value.remedy == f"allow it: {allow}"
    loaded = load_torch_file(tmp_path / "old.ckpt", allow=(allow,))["value"]
    assert str(loaded) == str(value)


def test_what_would_execute_is_never_allowed(tmp_path: Path) -> None:
    trap = Path("/tmp/stageline-trap-was-sprung")
    trap.unlink(missing_ok=True)
    torch.save({"value": Trap()}, tmp_path / "old.ckpt")
    for allow in ((), ("numpy", "pathlib", "argparse")):
        with pytest.raises(CheckpointError, match=r"foreign object|safely"):
            load_torch_file(tmp_path / "old.ckpt", allow=allow)
    assert not trap.exists()
    with pytest.raises(CheckpointError, match="can't be allowed"):
        load_torch_file(tmp_path / "old.ckpt", allow=("builtins",))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not a zip", b"\x80\x02}q\x00.", b"text\n" * 100, b"junk"])
def test_what_is_no_torch_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.ckpt").write_bytes(data)
    if data == b"\x80\x02}q\x00.":
        # A bare pickle of {} happens to be one of torch's old formats cut short.
        with pytest.raises(CheckpointError):
            load_torch_file(tmp_path / "bad.ckpt")
        return
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        load_torch_file(tmp_path / "bad.ckpt")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(100)}, tmp_path / "whole.ckpt")
    data = (tmp_path / "whole.ckpt").read_bytes()
    for length in (len(data) // 2, len(data) - 10, 100):
        (tmp_path / "cut.ckpt").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
            load_torch_file(tmp_path / "cut.ckpt")
    with pytest.raises(CheckpointError, match="no file"):
        load_torch_file(tmp_path / "absent.ckpt")


def test_only_a_mapping_of_tensors_is_a_state_dict() -> None:
    table = torch.randn(3, 3)
    found = tensors_of({"a": table, "b": table.t()}, "x")
    assert found["a"].data_ptr() != found["b"].data_ptr()
    assert found["b"].is_contiguous()
    with pytest.raises(CheckpointError, match="not tensors: lr, z"):
        tensors_of({"a": table, "z": None, "lr": 0.1}, "x")
    with pytest.raises(CheckpointError, match="a list"):
        tensors_of([table], "x")


def test_an_import_can_seed_and_be_evaluated_but_not_be_resumed(directory: StageDir) -> None:
    ref = commit_import(
        directory, provenance(), tensors(1), config_yaml="family: film_flow\n", notes={"source": "old.ckpt"}
    )
    found = resolve(directory.uri)
    assert found.digest == ref.digest
    assert found.metadata.notes == {"import": {"source": "old.ckpt"}}
    assert equal(read_tensors(found), tensors(1))
    for verb in ("seed", "evaluate"):
        admit(found, verb, family="film_flow", stages=["film"], facts=FACTS, rules={})  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no training state"):
        admit(found, "resume", family="film_flow", stages=["film"], facts=FACTS, rules={})

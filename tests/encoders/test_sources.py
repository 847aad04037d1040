"""Which files of a source count, where a hub id is looked up, and what is refused by name before anything is hashed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stageline.checkpoint.legacy import load_torch_file
from stageline.encoders.external import External, files_digest
from stageline.encoders.frozen import read_weights
from stageline.encoders.sources import fetch_source, find_source, read_files
from stageline.errors import DataError, MissingPartError, StagelineError

from .conftest import write_folder


def digest(external: External) -> str:
    return files_digest(read_files(external, find_source(external)))


def test_the_digest_is_of_the_files_that_matter(folder: Path) -> None:
    """Names and bytes count; a folder's own name, README and hidden files do not."""
    external = External("clip", str(folder))
    assert find_source(external).names == ("config.json", "model.safetensors")
    first = digest(external)
    (folder / "README.md").write_text("other words")
    (folder / ".gitattributes").write_text("x")
    moved = folder.rename(folder.with_name("moved"))
    assert digest(External("other", str(moved), revision="r1")) == first
    (moved / "tokenizer.json").write_text("{}")
    second = digest(External("clip", str(moved)))
    (moved / "tokenizer.json").rename(moved / "merges.txt")
    assert len({first, second, digest(External("clip", str(moved)))}) == 3


def test_a_single_file_and_named_files_of_a_larger_folder(folder: Path) -> None:
    write_folder(folder / "unet")
    one = find_source(External("clip", str(folder / "model.safetensors")))
    assert (one.folder, one.names) == (folder, ("model.safetensors",))
    unet = External("unet", str(folder), files=("unet/*.json", "unet/*.safetensors"))
    assert find_source(unet).names == ("unet/config.json", "unet/model.safetensors")
    assert find_source(External("clip", str(folder))).names == ("config.json", "model.safetensors")
    with pytest.raises(DataError, match=r"no file in .* matches vae/\*"):
        find_source(External("vae", str(folder), files=("unet/*", "vae/*")))


def test_a_hub_id_is_looked_up_in_the_cache_by_branch_and_commit(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--tiny"
    for name, value in (("a" * 40, 0.5), ("b" * 40, 0.75)):
        write_folder(repository / "snapshots" / name, value)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    main, other = External("lm", "org/tiny"), External("lm", "org/tiny", revision="b" * 40)
    assert find_source(main).origin == f"commit {'a' * 40}"
    assert digest(main) == digest(External("lm", "org/tiny", revision="a" * 40)) != digest(other)
    with pytest.raises(
        MissingPartError, match=r"lacks revision 'v2' of it \(which has of it: aaaaaaaaaaaa, bbbb"
    ) as no:
        fetch_source(External("lm", "org/tiny", revision="v2"))
    assert "unset HF_HUB_OFFLINE" in no.value.remedy
    assert "hf download org/tiny" in no.value.remedy
    with pytest.raises(MissingPartError, match="is no hub id"):
        find_source(External("lm", "/nowhere/at/all"))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 1234567\n".format("0" * 64)


def read_precomputed(path: Path) -> object:
    from stageline.families.film_flow.conditions.encoder import EncoderSettings, PrecomputedEncoder

    return PrecomputedEncoder(EncoderSettings("precomputed", str(path), feature_dim=4))


@pytest.mark.parametrize(
    ("read", "name"),
    [(read_weights, "a.safetensors"), (read_weights, "a.pth"), (load_torch_file, "a.ckpt"),
     (read_precomputed, "a.safetensors")],
    ids=["weights", "torch-weights", "import", "precomputed"],
)  # fmt: skip
def test_a_pointer_of_git_lfs_is_called_one_wherever_weights_are_read(
    tmp_path: Path, read: Callable[[Path], object], name: str
) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(StagelineError, match=rf"{name}' (is|are) a git-lfs pointer of .* 1234567 bytes.*git lfs pull"):
        read(tmp_path / name)


def test_a_hub_cache_without_a_home_folder_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # a number that no user has
    with pytest.raises(MissingPartError, match="no home folder is known") as no:
        find_source(External("lm", "org/tiny"))
    assert "HF_HOME" in no.value.remedy


def test_every_damaged_file_is_named_at_once(folder: Path) -> None:
    """A git-lfs pointer, an empty file, a cut-off one, a shard that is missing."""
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-4])
    (folder / "model.safetensors").write_text(POINTER)
    (folder / "vocab.txt").touch()
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    external = External("clip", str(folder))
    with pytest.raises(DataError) as refused:
        read_files(external, find_source(external))
    text = refused.value.message
    assert f"model.safetensors: a git-lfs pointer of {len(POINTER)} bytes to a file of 1234567 bytes" in text
    assert "vocab.txt: the file is empty" in text
    assert f"cut.safetensors: {len(whole) - 4} bytes, the header describes {len(whole)}" in text
    assert "names shard model-00002-of-00002.safetensors, which is missing" in text
    assert "4 faults" in text


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd"])
def test_an_index_names_no_file_outside(folder: Path, shard: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    external = External("clip", str(folder))
    with pytest.raises(DataError, match="is no file of this folder"):
        read_files(external, find_source(external))


def test_pickled_weights_are_not_taken(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="as pickle only"):
        find_source(External("clip", str(folder)))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(DataError, match="holds no weights"):
        find_source(External("clip", str(folder)))

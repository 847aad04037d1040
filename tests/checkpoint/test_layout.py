"""Names of checkpoints: everything that resolves, and what everything else is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stageline.checkpoint.layout import StageDir, name_typed, resolve, resolve_named
from stageline.checkpoint.metadata import METADATA_NAME, SCHEMA, content_of, parse_metadata
from stageline.config import seal_of
from stageline.errors import CheckpointError, ConfigError
from stageline.store import Store, open_store
from tests.checkpoint.samples import measured, save, writing


def test_every_name_of_a_checkpoint_leads_to_it(root: Store) -> None:
    directory = StageDir(root, "a", "film", "variant-x")
    with writing(directory) as writer:
        best = writer.save(measured(10, 0.9, 0.9, 10))
        last = writer.save(measured(20, 0.1, 0.9, 10))
    assert directory.uri == f"{root.uri}/runs/a/film/variant-x"
    for name, expected in {
        directory.uri: best,
        f"{directory.uri}/": best,
        f"{directory.uri}/best.ckpt": best,
        f"{directory.uri}/last.ckpt": last,
        last.uri: last,
        f"{last.uri}/{METADATA_NAME}": last,
        str(last.reference): last,
        f"{directory.uri}/last.ckpt@sha256:{last.digest}": last,
        f"{directory.uri}@sha256:{best.digest}": best,
    }.items():
        found = resolve(name)
        assert (found.uri, found.digest) == (expected.uri, expected.digest), name
    assert resolve(last.reference).digest == last.digest
    assert resolve(directory.uri, prefer="last").digest == last.digest


@pytest.mark.parametrize("name", ["my runs @ home/root", "a@sha256:b/runs/x", "ü"])
def test_a_run_of_one_stage_and_a_variant_resolve_below_any_path(tmp_path: Path, name: str) -> None:
    root = open_store(tmp_path / name)
    root.put("runs/a/run.json", b"{}")
    root.put("runs/a/evaluations/x/checkpoints/y", b"{}")
    (plain,) = save(StageDir(root, "a", "film"), 1)
    root.put("runs/b/run.json", b"{}")
    directory = StageDir(root, "b", "film", "wide")
    (variant,) = save(directory, 2)
    for uri, ref in (("a", plain), ("a/film", plain), ("b", variant), ("b/film", variant), ("b/film/wide", variant)):
        found = resolve(f"{root.uri}/runs/{uri}")
        assert (found.uri, found.digest) == (ref.uri, ref.digest)
        assert resolve(str(found.reference)).uri == ref.uri
    assert StageDir.at(directory.store).root is not None
    for ref in (plain, variant):
        assert ref.root is not None
        assert ref.root.uri == root.uri
    save(StageDir(root, "b", "film", "narrow"), 3)
    with pytest.raises(CheckpointError, match="several stage directories") as caught:
        resolve(f"{root.uri}/runs/b")
    assert f"{directory.uri}" in caught.value.remedy


def test_a_relative_path_resolves(directory: StageDir, monkeypatch: pytest.MonkeyPatch) -> None:
    (ref,) = save(directory, 1)
    local = directory.store.local_path()
    assert local is not None
    monkeypatch.chdir(local)
    assert resolve("best.ckpt").digest == ref.digest
    assert resolve(".").digest == ref.digest


def test_a_pointer_that_moved_on_is_not_the_checkpoint_that_was_named(directory: StageDir) -> None:
    first, _ = save(directory, 1, 2)
    with pytest.raises(CheckpointError, match="expected " + first.digest):
        resolve(f"{directory.uri}/last.ckpt@sha256:{first.digest}")


def test_what_is_no_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    directory = StageDir(str(tmp_path), "a", "film")
    save(directory, 1)
    store = open_store(tmp_path)
    save(StageDir(str(tmp_path), "a", "backbone"), 1)
    store.put("runs/a/run.json", b"{}")
    store.put("runs/b/run.json", b"{}")
    store.put("old/model.ckpt", b"PK")
    store.put("old/best.ckpt", b"PK\x03\x04")
    store.put("plain/file", b"x")
    for name, said in {
        "nowhere": "there is no checkpoint",
        "runs/a": "holds several stage directories",
        "runs/b": "is a run without a checkpoint",
        "runs/a/run.json": "is a file",
        "old/model.ckpt": "file of another program",
        "old/best.ckpt": "is no pointer",
        "plain": "is no checkpoint",
        "runs/a/film/checkpoints": "is no checkpoint",
        "runs/a/film@sha256:12": "names no checkpoint",
        "runs/a/film/checkpoints/step-00000009": "there is no checkpoint",
    }.items():
        with pytest.raises(CheckpointError, match=said) as caught:
            resolve(f"{tmp_path}/{name}")
        assert caught.value.remedy, name
    for nothing in ("", "/", "s3://"):
        with pytest.raises(CheckpointError, match="names no checkpoint"):
            resolve(nothing)
    with pytest.raises(CheckpointError) as caught:
        resolve(f"{tmp_path}/runs/a")
    assert f"{tmp_path}/runs/a/film" in caught.value.remedy


def test_an_export_is_no_checkpoint(directory: StageDir, tmp_path: Path) -> None:
    save(directory, 1)
    data = directory.store.get(METADATA_NAME)
    open_store(tmp_path / "export").put(METADATA_NAME, data)
    with pytest.raises(CheckpointError, match="is an export of checkpoint"):
        resolve(str(tmp_path / "export"))


@pytest.mark.parametrize(
    "pointer",
    [
        {},
        {"target": "checkpoints/step-00000001"},
        {"target": "../other/checkpoints/step-00000001", "digest": "0"},
        {"target": 1, "digest": 2},
    ],
)
def test_a_pointer_that_points_nowhere_sensible_is_refused(directory: StageDir, pointer: object) -> None:
    save(directory, 1)
    directory.store.put("last.ckpt", json.dumps(pointer).encode())
    with pytest.raises(CheckpointError, match="no pointer"):
        resolve(f"{directory.uri}/last.ckpt")


def test_metadata_survives_its_own_file(directory: StageDir) -> None:
    with writing(directory) as writer:
        ref = writer.save(measured(10, 1 / 3, 1e-300, 10))
    data = ref.store.get(METADATA_NAME)
    again = parse_metadata(data, "x")
    assert again == ref.metadata
    assert again.to_bytes() == data
    assert again.metrics == {"dice": 1 / 3}
    assert content_of(again.files) == ref.content


def test_a_metric_that_is_no_number_is_kept_as_null(directory: StageDir) -> None:
    with writing(directory) as writer:
        ref = writer.save(measured(10, float("nan"), 0.5, 5))
    assert resolve(ref.uri).metadata.metrics == {"dice": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.update(schema="stageline/3"), f"'stageline/3', this version reads stageline/1, {SCHEMA}"),
        (lambda p: p.pop("schema"), "schema None"),
        (lambda p: p.update(surprise=1), "surprise"),
        (lambda p: p.pop("step"), "step: Field required"),
        (lambda p: p.update(step="1"), "step: Input should be a valid integer"),
        (lambda p: p.update(run="b"), "seal"),
    ],
)
def test_metadata_of_another_kind_is_refused(directory: StageDir, change: object, said: str) -> None:
    (ref,) = save(directory, 1)
    plain = json.loads(ref.store.get(METADATA_NAME))
    change(plain)  # type: ignore[operator]
    if said != "seal":
        plain["seal"] = seal_of(plain)
    with pytest.raises(CheckpointError, match=said):
        parse_metadata(json.dumps(plain).encode(), "x")


def test_a_reader_between_two_moves_of_a_pointer_gets_a_checkpoint(
    directory: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointer is read, then the writer moves it and deletes what it named."""
    save(directory, 1)
    old = directory.store.get("last.ckpt")
    (second,) = save(directory, 2)
    directory.store.delete_tree("checkpoints/step-00000001")
    get, reads = Store.get, []

    def stale_first(self: Store, key: str) -> bytes:
        data = get(self, key)
        if key == "last.ckpt":
            reads.append(key)
            return old if len(reads) == 1 else data
        return data

    monkeypatch.setattr(Store, "get", stale_first)
    found = directory.pointer("last")
    assert found is not None
    assert found.digest == second.digest
    assert len(reads) == 2


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(root, working folder), beside each other, with a checkpoint of the same name in both and one only here."""
    for place in ("root", "here"):
        save(StageDir(str(tmp_path / place), "a", "film"), 1)
    save(StageDir(str(tmp_path / "here"), "b", "film"), 1)
    save(StageDir(str(tmp_path / "root"), "c", "film"), 1)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    return tmp_path / "root", tmp_path / "here"


def test_what_is_typed_means_the_same_in_every_folder(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named as a config may: a URI, a whole path, or below the root."""
    root, here = folders
    digest = "0" * 64
    for typed, meant in {
        "./runs/a/film": f"{here}/runs/a/film",
        "~/runs/b/film": f"{here}/runs/b/film",
        "../here/./runs/b/film/": f"{here}/runs/b/film",
        "../root/runs/a/film": "runs/a/film",
        "runs/b/film": f"{here}/runs/b/film",
        f"runs/b/film@sha256:{digest}": f"{here}/runs/b/film@sha256:{digest}",
        "runs/c/film": "runs/c/film",
        f"{here}/runs/a/film": f"{here}/runs/a/film",
        "runs/nobody/film": "runs/nobody/film",
        "s3://bucket/runs/a": "s3://bucket/runs/a",
    }.items():
        assert name_typed(typed, str(root)) == meant, typed
    assert name_typed("./runs/a/film", ".") == name_typed("runs/a/film", ".") == "runs/a/film"
    assert name_typed("./runs/b/film", str(here)) == "runs/b/film"
    assert name_typed("./runs/b/film", "s3://bucket/x") == f"{here}/runs/b/film"
    found = resolve_named(name_typed("runs/b/film", "../root"), "../root")
    monkeypatch.chdir(root)
    assert found.uri.startswith(f"{here}/runs/b/film/")


def test_a_name_that_two_places_answer_to_is_refused(folders: tuple[Path, Path]) -> None:
    root, here = folders
    with pytest.raises(ConfigError) as caught:
        name_typed("runs/a/film", str(root))
    for words in (f"{root}/runs/a/film", f"{here}/runs/a/film", "./runs/a/film"):
        assert words in str(caught.value)
    (here / "runs/c").symlink_to(root / "runs/c")
    assert name_typed("runs/c/film", str(root)) == "runs/c/film", "one and the same"


def test_a_name_that_leads_nowhere_tells_both_places(folders: tuple[Path, Path]) -> None:
    root, here = folders
    with pytest.raises(CheckpointError) as caught:
        resolve_named("runs/nobody/film", str(root))
    for words in (f"no checkpoint at '{root}/runs/nobody/film'", f"nor anything at '{here}/runs/nobody/film'"):
        assert words in str(caught.value)
    with pytest.raises(CheckpointError, match="but something at") as caught:
        resolve_named("runs/b/film", str(root))
    assert "type ./" in caught.value.remedy
    assert resolve_named("runs/a/film", str(root)).uri.startswith(f"{root}/runs/a/film/")


def test_a_name_below_a_store_and_here_is_refused_too(root: Store, folders: tuple[Path, Path]) -> None:
    save(StageDir(root, "a", "film"), 1)
    with pytest.raises(ConfigError, match="could be"):
        name_typed("runs/a/film", root.uri)
    assert name_typed("runs/b/film", root.uri) == f"{folders[1]}/runs/b/film"

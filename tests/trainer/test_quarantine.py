"""Rows that cannot be used: listed in each run that uses the split, counted in its checkpoints, refused if too many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stageline.checkpoint.identity import claim_run
from stageline.checkpoint.layout import resolve
from stageline.data.quarantine import COLUMNS, QuarantineError, SetAside
from stageline.data.splits import make_manifest, parse_manifest
from stageline.data.tables import csv_rows
from stageline.errors import DataError
from stageline.families import parse_config
from stageline.verbs.prepare import prepare_data
from stageline.verbs.report import build_report
from stageline.verbs.train import train_stage


def prepared(root: Path, run: str, *overrides: str) -> Any:
    config = parse_config({"family": "toy", "run": run, "root": str(root)}, ["trainer.accelerator=cpu", *overrides])
    return config, prepare_data(config)


def listed(root: Path, run: str) -> list[tuple[str, str, str, str]]:
    rows = csv_rows((root / f"runs/{run}/quarantine/train.csv").read_text())
    assert all(tuple(row) == COLUMNS for row in rows)
    return [(row["row"], row["file"], row["class"], row["message"]) for row in rows]


WANTED = [("4", "3.txt", "odd", "row 3 is broken"), ("9", "8.txt", "even", "row 8 is broken")]


def test_every_run_that_uses_a_split_lists_its_rows_and_its_checkpoints_count_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, first = prepared(tmp_path, "one", "data.broken=[3,8]", "trainer.max_steps=1", "trainer.tensorboard=false")
    assert "train: 2 rows set aside (even 1, odd 1), listed in " in capsys.readouterr().err
    _, again = prepared(tmp_path, "two", "data.broken=[3,8]")
    assert not first.reused
    assert again.reused
    assert listed(tmp_path, "one") == listed(tmp_path, "two") == WANTED
    assert [path.name for path in (tmp_path / "runs/two/quarantine").iterdir()] == ["train.csv"]
    assert again.splits["train"].num_rows == 30
    made = train_stage(config, "base", data=str(first.reference))
    assert resolve(str(made.reference)).metadata.data_set_aside == {"train": {"even": 1, "odd": 1}}
    page = Path(build_report(str(tmp_path / "runs/one"))).read_text()
    assert '<a href="./quarantine/train.csv">' in page
    assert "even 1, odd 1" in page
    prepared(tmp_path, "two")
    assert not (tmp_path / "runs/two/quarantine/train.csv").exists(), "of sources that were mended"


def test_too_many_are_refused_and_all_of_them_listed(tmp_path: Path) -> None:
    with pytest.raises(QuarantineError, match=r"3 rows are broken\n.*listed in .*/runs/one/quarantine") as caught:
        prepared(tmp_path, "one", "data.broken=[3,8,9]")
    assert caught.value.exit_code == DataError.exit_code
    assert listed(tmp_path, "one") == [*WANTED, ("10", "9.txt", "odd", "row 9 is broken")]
    assert not list(tmp_path.rglob("manifest.json"))


def test_nothing_is_listed_in_a_run_of_another_identity(tmp_path: Path) -> None:
    claim_run(str(tmp_path), parse_config({"family": "toy", "run": "one", "root": str(tmp_path)}))
    prepared(tmp_path, "one", "data.broken=[3,8]", "seed=9")
    assert not (tmp_path / "runs/one/quarantine").exists()


@pytest.mark.parametrize("rows", [{"row": 1}, [{"row": "1"}], [7], 7])
def test_a_manifest_with_other_lists_is_damaged(tmp_path: Path, rows: Any) -> None:
    about = {"family": "toy", "split": "train", "facts": {}, "folder": "data", "num_rows": 0, "numbers": {}}
    row = SetAside(1, "a", "b", "c")
    for aside, words in ((rows, "`set_aside`"), ([row.to_json()], "`shards`")):
        with pytest.raises(DataError, match=words):
            parse_manifest(make_manifest({**about, "set_aside": aside}), str(tmp_path))

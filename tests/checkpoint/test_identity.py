"""One name, one identity: who comes with another is blocked and told the difference."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from guards import HANG_SECONDS
from pydantic import Field

from stageline.checkpoint.identity import RunRecord, claim_run, compare_run, read_run
from stageline.config import RunConfig, Settings, fingerprint, identity
from stageline.errors import PlanError
from stageline.families import FAMILIES, parse_config, raw_preset
from stageline.store import Store


class Model(Settings):
    overlap: float = 0.5
    stages: list[int] = Field(default_factory=lambda: [2, 3])


class Config(RunConfig):
    model: Model = Model()


def config(**changes: object) -> Config:
    return Config(family="film_flow", run="a", **changes)  # type: ignore[arg-type]


def test_a_name_is_claimed_once_and_joined_by_the_same_identity(root: Store) -> None:
    assert read_run(root, "a") is None
    record = claim_run(root, config(), "stageline run", stages={"backbone": "backbone", "film": "film/wide"})
    assert claim_run(root, config(root="/elsewhere"), "again") == record
    assert read_run(root, "a") == record
    model = {"model.overlap": 0.5, "model.stages": [2, 3]}
    assert record.identity == {"family": "film_flow", "seed": 0, "data": {}, **model}
    assert record.versions["stageline"]
    assert record.command == "stageline run"


def test_another_identity_is_blocked_with_every_difference_and_the_flag(root: Store) -> None:
    claim_run(root, config())
    other = config(seed=3, model=Model(overlap=0.0))
    with pytest.raises(PlanError) as caught:
        claim_run(root, other)
    assert "model.overlap: 0.5 -> 0" in caught.value.message
    assert "seed: 0 -> 3" in caught.value.message
    assert "run=<new name>" in caught.value.remedy
    record = read_run(root, "a")
    assert record is not None
    assert len(compare_run(record, other)) == 2
    assert compare_run(record, config()) == []


def test_what_evaluations_alone_read_makes_no_other_run_in_any_family(root: Store) -> None:
    """Those of older records are no difference either, and are not told among differences."""
    for name in sorted(FAMILIES):
        one = parse_config(raw_preset(name, "tiny"), [f"run={name}"])
        more = parse_config(raw_preset(name, "tiny"), [f"run={name}", "data.num_test=7"])
        claim_run(root, one)
        assert claim_run(root, more) == read_run(root, name)
        older = RunRecord(**{**vars(claim_run(root, one)), "identity": identity(one) | {"data.num_test": 4}})
        older = RunRecord(**{**vars(older), "fingerprint": fingerprint(older.identity)})
        assert compare_run(older, more) == []
        assert [line.split(":")[0] for line in compare_run(older, more.model_copy(update={"seed": 5}))] == ["seed"]


def test_names_that_differ_in_capital_letters_alone_are_refused(root: Store) -> None:
    claim_run(root, config())
    with pytest.raises(PlanError, match="differ in capital letters alone") as caught:
        claim_run(root, config().model_copy(update={"run": "A"}))
    assert "'A'" in caught.value.message
    assert "'a'" in caught.value.message
    assert "run=a" in caught.value.remedy
    assert read_run(root, "A") is None
    assert claim_run(root, config()).run == "a"
    assert claim_run(root, config().model_copy(update={"run": "a.b"})).run == "a.b"


def test_a_file_system_without_capital_letters_joins_nothing(root: Store) -> None:
    """Where `runs/A` is `runs/a`, the record found there has the other name."""
    record = claim_run(root, config())
    root.put("runs/A/run.json", record.to_bytes())
    with pytest.raises(PlanError, match="is called 'a', and 'A' is asked for"):
        claim_run(root, config().model_copy(update={"run": "A"}))


def test_two_threads_with_two_identities_get_one_run(root: Store) -> None:
    start = threading.Barrier(2)
    joined: list[int] = []
    blocked: list[PlanError] = []

    def claim(seed: int) -> None:
        start.wait(HANG_SECONDS)
        try:
            claim_run(root, config(seed=seed))
            joined.append(seed)
        except PlanError as error:
            blocked.append(error)

    threads = [threading.Thread(target=claim, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert (len(joined), len(blocked)) == (1, 1)
    record = read_run(root, "a")
    assert record is not None
    assert record.identity["seed"] == joined[0]


def test_two_processes_with_two_identities_get_one_run(tmp_path: Path) -> None:
    script = f"""
import sys, time
from stageline.checkpoint.identity import claim_run
from stageline.config import RunConfig
from stageline.errors import PlanError
from stageline.store import open_store
root = open_store({str(tmp_path)!r})
root.put("ready/" + sys.argv[1], b"")
while len(root.list("ready")) < 2:
    time.sleep(0.002)
won = 0
for i in range(50):
    try:
        claim_run(root, RunConfig(family="film_flow", run=f"r{{i}}", seed=int(sys.argv[1])))
        won += 1
    except PlanError:
        pass
print(won)
"""
    ones = [
        subprocess.Popen([sys.executable, "-c", script, seed], stdout=subprocess.PIPE, text=True) for seed in ("1", "2")
    ]
    counts = [int(one.communicate(timeout=HANG_SECONDS)[0]) for one in ones]
    records = [read_run(str(tmp_path), f"r{i}") for i in range(50)]
    seeds = [record.identity["seed"] for record in records if record is not None]
    assert counts == [seeds.count(1), seeds.count(2)]
    assert sum(counts) == 50


@pytest.mark.parametrize("junk", [b"", b"[]", b'{"schema": "stageline-run/1"}', b'{"schema": "other"}'])
def test_a_damaged_record_blocks(root: Store, junk: bytes) -> None:
    root.put("runs/a/run.json", junk)
    with pytest.raises(PlanError, match=r"run\.json"):
        claim_run(root, config())
    assert root.get("runs/a/run.json") == junk

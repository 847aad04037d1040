"""What ranks tell each other: JSON of a bounded size, whatever a peer makes up."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from stageline.checkpoint import exchange
from stageline.errors import PeerLostError, StagelineError

from .conftest import Payload


def test_no_object_collective_is_left() -> None:
    """They unpickle what other ranks send. torch's distributed checkpoint has its own: it is told to work alone."""
    source = Path(exchange.__file__).parents[1]
    calls = re.compile(r"\b\w*_object(_list)?\(|\bfabric\.(broadcast|all_gather)\(|pickle\.loads?\(")
    wanted = re.compile(r"(all_gather|broadcast|gather|scatter|send|recv)_object|fabric\.|pickle\.load")
    found = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in source.rglob("*.py")
        for line in path.read_text().splitlines()
        if calls.search(line) and wanted.search(line)
    ]
    assert found == []
    sharded = (source / "checkpoint" / "sharded.py").read_text()
    assert sharded.count("no_dist=True") == len(re.findall(r"(?:save|load)_distributed\(", sharded)) == 2


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_what_ranks_say_is_json_of_a_bounded_size(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"loss": 0.1, "names": ["a", "ä"], "none": None}
    assert exchange.gather_json(value) == [value]
    monkeypatch.setattr(exchange, "MAX_JSON_BYTES", 30)
    assert exchange.gather_json("x" * 28) == ["x" * 28]
    with pytest.raises(StagelineError, match="rank 0 has more to say to the others than 30 bytes"):
        exchange.gather_json("x" * 29)


@pytest.mark.parametrize("length", [-1, 1 << 40], ids=["negative", "huge"])
def test_a_length_that_a_peer_made_up_is_refused_before_anything_is_made(
    alone: None, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    def lie(lengths: list[torch.Tensor], *_: object, **__: object) -> None:
        lengths[0].fill_(length)

    monkeypatch.setattr(dist, "all_gather", lie)
    with pytest.raises(StagelineError, match="rank 0 has more to say"):
        exchange.gather_json("x")


def test_a_pickle_that_a_peer_sends_is_no_json(mark: Path) -> None:
    sent = torch.frombuffer(bytearray(pickle.dumps(Payload(mark))), dtype=torch.uint8)
    with pytest.raises(PeerLostError, match="what rank 3 says is no JSON"):
        exchange._read(sent, 3)

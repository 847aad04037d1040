"""What a stranger sends: a pickle, and a file by which one sees that it was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Payload:
    """What a pickle of a stranger does where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A file that no stranger's pickle may make."""
    path = tmp_path / "a stranger was here"
    yield path
    assert not path.exists()

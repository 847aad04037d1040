"""Public names of a package that are loaded on use (PEP 562), so that importing one of its modules loads no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def names_on_use(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`.

    package: its `__name__`.  places: public name -> the module below the package that has it.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(places)}")
        return getattr(import_module(f"{package}.{places[name]}"), name)

    def list_names() -> list[str]:
        return [*vars(import_module(package)), *places]

    return get, list_names

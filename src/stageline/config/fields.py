"""What every section is made of: frozen closed settings, and fields that stay out of fingerprints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

OPERATIONAL: dict[str, Any] = {"operational": True}
ADDED: dict[str, Any] = {"added": True}


class Settings(BaseModel):
    """Base of every section: frozen, closed, strict about types (an int is not a bool, a string is no number)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        defer_build=True,  # a section alone is hardly ever validated: most validators are never made
    )

    IN_FINGERPRINTS: ClassVar[Mapping[str, str]] = {}
    """Field -> the property that stands for it in fingerprints, where the field alone does not say what counts."""
    ALTERNATIVES: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of fields that say one thing in two ways: where a user states one, a stage's default of the other is
    not taken."""


S = TypeVar("S", bound="Settings")


def operational(default: Any, *, once_counted: bool = False, **kwargs: Any) -> Any:
    """A field that cannot change a result, only where or how fast it is made: left out of fingerprints.

    once_counted: it was counted in the first release. Fingerprints of stages hold its default in its place, and what
    was trained under another value of it is found by that value (`canonical.once_counted`).
    """
    extra = OPERATIONAL | ({"once_counted": True} if once_counted else {})
    return Field(default=default, json_schema_extra=extra, **kwargs)


def is_operational(field: FieldInfo) -> bool:
    """Whether a field was declared with `operational(...)`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("operational") is True


def added(default: Any, **kwargs: Any) -> Any:
    """A field that came after the first release: out of fingerprints while it has its default.

    What was trained before the field was there is still the same; its default must mean what was done before.
    """
    return Field(default=default, json_schema_extra=ADDED, **kwargs)


def is_added(field: FieldInfo) -> bool:
    """Whether a field was declared with `added(...)`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("added") is True


def key_of(name: str, field: FieldInfo) -> str:
    """How a field is spelled in YAML: its alias where it has one (`import` is no name in Python)."""
    return field.alias or name


class HomeExpanded:
    """Marks the type of a path whose `~` is a home folder."""


def _expand_home(value: str) -> str:
    """A path with `~` and `~user` at its beginning as the home folder they name; ValueError where there is none."""
    expanded = os.path.expanduser(value)  # noqa: PTH111  # Path would take s3://a for s3:/a
    if expanded.startswith("~"):
        raise ValueError(
            f"{value!r}: no home folder is known for {value.split('/')[0]!r} here (HOME is not set, or there is no "
            "such user); write the path out, or ./~… for a folder whose name begins so"
        )
    return expanded


LocalPath = Annotated[str, AfterValidator(_expand_home), HomeExpanded()]
"""A file or folder of this machine, or a URI."""


class SectionError(ValueError):
    """Several contradictions inside one section, each to be listed by itself; for validators of a whole section."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = tuple(sentences)

"""What somebody who asks for a decision hands over instead of leaving it to the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stageline.config import RunConfig
from stageline.errors import ConfigError
from stageline.work.data import Hashes


@dataclass(frozen=True)
class Given:
    """References that are handed on: complete where there are any, never filled up from the store.

    data: of the prepared data; "" leaves them to the store.
    parents: role -> checkpoint of the stage that is asked for, "" for none; None leaves them to config and store.
    checkpoints: name -> checkpoint to be evaluated; None leaves them to config and store.
    stages: stage -> checkpoint that its step handed on, "" for none; for an evaluation, which picks from them.
    hashes: split -> source file -> SHA-256, as just read; None leaves them to what is noted.
    """

    data: str = ""
    parents: Mapping[str, str] | None = None
    checkpoints: Mapping[str, str] | None = None
    stages: Mapping[str, str] | None = None
    hashes: Hashes | None = None


def given_to_stage(config: RunConfig, stage: str, data: str, parents: Mapping[str, str]) -> Given:
    """What the steps before it hand on to a stage; what the config itself names comes before it.

    parents: role -> reference, "" for none.
    """
    named = config.parents.get(stage, {})
    return Given(data, {role: reference for role, reference in parents.items() if not named.get(role)})


def given_by(arguments: Sequence[str]) -> Given | None:
    """What the command line of a job hands over; None for a job that stands for itself.

    arguments: verb and options, `--name=value` each.
    """
    values: dict[str, list[str]] = {}
    for word in arguments:
        name, sign, value = word.partition("=")
        if sign and name.startswith("--"):
            values.setdefault(name[2:], []).append(value)
    if "data" not in values:
        return None
    parents = parse_pairs(values["parent"]) if "parent" in values else None
    checkpoints = {"": values["checkpoint"][-1]} if "checkpoint" in values else None
    return Given(values["data"][-1], parents, checkpoints)


def parse_pairs(words: Sequence[str]) -> dict[str, str]:
    """Role -> checkpoint of `role=checkpoint` words, as the option --parent takes them."""
    pairs = [word.partition("=") for word in words]
    wrong = [word for word, (_, sign, _) in zip(words, pairs, strict=True) if not sign]
    if wrong:
        raise ConfigError(
            f"--parent {wrong[0]!r} is not role=checkpoint", remedy="for example --parent default=runs/a/b"
        )
    return {role: name for role, _, name in pairs}

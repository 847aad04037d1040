"""`stageline doctor`: what is right, wrong or unknown about an installation, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stageline.cli.configuration import AsJson, ConfigFile, FamilyName, Overrides, PresetName, read_config
from stageline.printing import json_text, say, say_block

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stageline.config import RunConfig
    from stageline.doctor import Line, Setup

MARKS = {"ok": "ok     ", "wrong": "WRONG  ", "unknown": "unknown"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(doctor)


def doctor(
    overrides: Overrides = None,
    config: ConfigFile = None,
    family: FamilyName = None,
    preset: PresetName = None,
    launcher_account: Annotated[
        str,
        typer.Option(help="Service account of the pipeline's steps; empty takes the chart's.", show_default=False),
    ] = "",
    seconds: Annotated[float, typer.Option(help="How long all checks together may take.", min=0.5)] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Look at this machine, the cluster, the namespace, the store and the image; say what mends what is wrong.

    Without a config: the namespace's defaults, and keys such as root=s3://… or cluster.image=…. Changes nothing that
    stays.
    Ends with 0 unless a line is wrong (17); what can't be seen from here is unknown, which is no fault.
    """
    from stageline.doctor import examine, raise_if_wrong

    lines = examine(_setup(config, family, preset, overrides, launcher_account), seconds)
    if as_json:
        say_block(json_text([line.to_json() for line in lines]))
    else:
        _show(lines)
    raise_if_wrong(lines)


def _setup(
    file: Path | None, family: str | None, preset: str | None, overrides: Sequence[str] | None, launcher: str
) -> Setup:
    """What is to be examined: a run's config, or the defaults with a few keys."""
    from stageline.config import RunConfig, apply_overrides, validate
    from stageline.doctor import Setup
    from stageline.families import parse_config
    from stageline.jobs.defaults import (
        ACCOUNT_KEY,
        KEY,
        mounted_account,
        mounted_defaults,
        parse_defaults,
        with_defaults,
    )
    from stageline.pipeline.items import plain_config
    from stageline.pipeline.submission import SERVICE_ACCOUNT, namespace_map

    named = file is not None or family is not None
    if named:
        own = read_config(file, family, preset, overrides)
        raw = plain_config(own)
    else:
        raw = apply_overrides({"family": "none"}, overrides or (), RunConfig)
        own = validate(raw, RunConfig, "the keys given")
    defaults, account = mounted_defaults(), mounted_account()
    if not defaults:
        found = namespace_map(own, lambda _: None)
        defaults = parse_defaults(found.get(KEY, ""), f"ConfigMap {own.cluster.defaults!r}")
        account = found.get(ACCOUNT_KEY, "")
    raw, launcher = with_defaults(raw, defaults), launcher or account or SERVICE_ACCOUNT
    if named:
        own = parse_config(raw)
        return Setup(own.cluster, own.root, _largest(own), launcher)
    own = validate(raw, RunConfig, "the keys given, on top of the namespace's defaults")
    return Setup(own.cluster, own.root if "root" in raw else "", own.trainer.nodes, launcher)


def _largest(config: RunConfig) -> int:
    """Pods of the largest stage."""
    from stageline.families import family_config
    from stageline.stage import stage_config

    stages = family_config(config.family).selected(config)
    nodes: list[int] = [stage_config(config, stage).trainer.nodes for stage in stages]
    return max(nodes, default=1)


def _show(lines: Sequence[Line]) -> None:
    width = max(len(line.name) for line in lines)
    for line in lines:
        say(f"{MARKS[line.state]}  {line.name:<{width}}  {line.text}")
        if line.remedy and line.state != "ok":
            say(f"{'':<{width + 11}}-> {line.remedy}")

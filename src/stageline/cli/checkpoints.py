"""Commands around checkpoints: checkpoint show, verify, lineage, import, export, prune, set-aside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from stageline.cli.configuration import AsJson, ConfigFile, FamilyName, PresetName
from stageline.printing import json_text, say, say_block

Target = Annotated[str, typer.Argument(help="Step directory, stage directory, run of one stage, or pointer file.")]


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at checkpoints, move them, tidy up.")
    group.command("show")(show)
    group.command("verify")(verify)
    group.command("lineage")(lineage)
    group.command("import")(import_)
    group.command("export")(export)
    group.command("prune")(prune)
    group.command("set-aside")(set_aside)
    app.add_typer(group, name="checkpoint")


def show(target: Target, as_json: AsJson = False) -> None:
    """What a checkpoint is."""

    from stageline.checkpoint.lineage import describe

    plain = describe(target)
    if as_json:
        say_block(json_text(plain))
    else:
        _print_nested(plain)


def _print_nested(value: Mapping[str, Any], pad: str = "") -> None:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            say(f"{pad}{key}:")
            _print_nested(item, pad + "  ")
        else:
            say(f"{pad}{key}: {item}")


def verify(
    target: Target,
    fast: Annotated[bool, typer.Option("--fast", help="Sizes, headers and names only; reads no tensors.")] = False,
) -> None:
    """Is a checkpoint whole? Exit code 4 and every fault if not."""
    from stageline.checkpoint.layout import resolve
    from stageline.checkpoint.verify import verify as faults_of
    from stageline.errors import CheckpointError, Faults

    ref = resolve(target)
    faults = Faults(CheckpointError, ref.uri, "use another checkpoint; the last good one is never touched by a save")
    faults.extend(faults_of(ref, hashes=not fast))
    faults.raise_if_any()
    say(f"whole: {ref.reference}")


def lineage(target: Target, as_json: AsJson = False) -> None:
    """A checkpoint and all it descends from."""

    from stageline.checkpoint.lineage import lineage as chain_of

    chain = chain_of(target)
    if as_json:
        say_block(json_text(chain))
        return
    for entry in chain:
        pad = "  " * int(entry.get("depth", 0))
        role = f"{entry['role']}: " if entry.get("role") else ""
        status = entry.get("status", "present")
        mark = "" if status == "present" else f"  [{status}]"
        say(f"{pad}{role}{entry.get('stage')} step {entry.get('step')}  {entry.get('uri')}{mark}")


def import_(
    words: Annotated[
        list[str], typer.Argument(metavar="FILE... [KEY=VALUE]...", help="Files of one training; settings.")
    ],
    to: Annotated[str, typer.Option("--to", help="Name of the run that gets the checkpoint.")],
    stage: Annotated[str, typer.Option(help="Of which stage they are, where they do not say it.")] = "",
    config: ConfigFile = None,
    family: FamilyName = None,
    preset: PresetName = None,
    as_json: AsJson = False,
) -> None:
    """Bring in files of another program as one finished checkpoint; nothing in them is executed."""

    from stageline.cli.imports import import_files

    answer = import_files(words, to, stage=stage, config=config, family=family, preset=preset)
    if as_json:
        say_block(json_text(answer, default=str))
        return
    _print_nested(answer["report"])
    say(answer["reference"])


def export(
    target: Target,
    to: Annotated[Path, typer.Option("--to", help="Empty or new folder.")],
    weights: Annotated[str | None, typer.Option(help="raw or ema; none takes ema where there is one.")] = None,
    kind: Annotated[str, typer.Option("--format", help="safetensors, or one of the family's own.")] = "safetensors",
) -> None:
    """Write a checkpoint's weights for other programs."""
    from stageline.cli.exports import write_export
    from stageline.errors import ConfigError

    if weights not in (None, "raw", "ema"):
        raise ConfigError(
            f"--weights {weights!r}: expected raw or ema", remedy="leave it out for ema where there is one"
        )
    say(write_export(target, to, kind, weights))  # type: ignore[arg-type]  # checked above


def prune(
    target: Annotated[str, typer.Argument(help="Run directory or stage directory.")],
    last: Annotated[int, typer.Option(help="Keep the newest N.")] = 2,
    best: Annotated[int, typer.Option(help="Keep the best N by the stage's metric.")] = 1,
    every: Annotated[int, typer.Option(help="Keep every checkpoint whose step is a multiple of K; 0 none.")] = 0,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Free what was made with other settings than those written last.")
    ] = False,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="With --superseded: beginning of a stage fingerprint that stays.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only show.")] = False,
) -> None:
    """Delete old checkpoints by three numbers; never what a pointer, a parent link or a running save needs.

    Finished trainings with other settings stay until --superseded.
    """
    from stageline.checkpoint.layout import stage_dirs_in
    from stageline.checkpoint.retention import prune as prune_stage
    from stageline.checkpoint.retention import prune_superseded
    from stageline.cli.tables import show_rows
    from stageline.config import RetentionConfig, validate
    from stageline.errors import CheckpointError
    from stageline.store import open_below

    numbers = validate({"last": last, "best": best, "every_steps": every}, RetentionConfig, "retention")
    store = open_below(target)
    directories = stage_dirs_in(store)
    rows = []
    for directory in directories:
        if superseded:
            decisions = prune_superseded(directory, keep=keep or (), dry_run=not yes)
        else:
            decisions = prune_stage(directory, numbers, dry_run=not yes)
        own = directory.uri.removeprefix(f"{store.uri}/") if directory.uri != store.uri else store.uri.split("/")[-1]
        rows += [(own, decision.name, decision.action, decision.reason) for decision in decisions]
    if directories and not rows:
        say(f"{store.uri} holds nothing superseded" if superseded else f"{store.uri} holds nothing to prune")
        return
    if not rows:
        raise CheckpointError(f"{store.uri} holds no checkpoints", remedy="name a run or stage directory")
    show_rows(("stage", "checkpoint", "action", "why"), rows)
    if not yes:
        say("nothing was deleted; add --yes")


def set_aside(
    target: Annotated[str, typer.Argument(help="A step directory whose checkpoint is damaged.")],
) -> None:
    """Take a damaged checkpoint out of use, so that its stage goes on from the one before it; deletes nothing."""
    from stageline.checkpoint.retention import set_aside_step
    from stageline.checkpoint.steps import ASIDE_NAME
    from stageline.store import open_below

    store = open_below(target)
    reason = set_aside_step(store, "stageline checkpoint set-aside")
    say(f"set aside: {store.uri}: {reason}")
    say(f"once it is whole again, delete {ASIDE_NAME} in it")

"""`stageline trial`: train something tiny on the cluster, to see whether the installation works."""

from __future__ import annotations

from typing import Annotated

import typer

from stageline.cli.configuration import ConfigFile, Overrides
from stageline.printing import say


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(trial)


def trial(
    overrides: Overrides = None,
    config: ConfigFile = None,
    family: Annotated[
        str, typer.Option(help="Whose smallest preset is trained; empty takes the config's.", show_default=False)
    ] = "",
    stage: Annotated[
        str,
        typer.Option(help="What to train, after its parents; empty takes the family's first.", show_default=False),
    ] = "",
) -> None:
    """Train a tiny stage on the cluster, on a pod's own disk, and verify its checkpoint: about a minute.

    Of a config only `family` and the section `cluster` are read; without one, the defaults of the namespace. Needs no
    storage.
    """
    from stageline.config import RunConfig, apply_overrides, read_yaml, validate
    from stageline.errors import ConfigError
    from stageline.families import FAMILIES, family_config
    from stageline.jobs.defaults import mounted_defaults, with_defaults
    from stageline.jobs.trial import run_trial
    from stageline.pipeline.submission import namespace_defaults

    given = read_yaml(config) if config else {}
    family = family or str(given.get("family") or "")
    if not family:
        raise ConfigError("a trial of which family?", remedy=f"--family, one of: {', '.join(FAMILIES)}")
    stage = stage or family_config(family).stages.names[0]
    raw = {"family": "none", **apply_overrides({"cluster": given.get("cluster", {})}, overrides or (), RunConfig)}
    where = str(config) if config else "the keys given"
    defaults = mounted_defaults() or namespace_defaults(validate(raw, RunConfig, where), say)
    cluster = validate(with_defaults(raw, defaults), RunConfig, where).cluster
    for note in cluster.notes:
        say(f"note: {note}")
    run_trial(cluster, family, stage, say, lambda text: say(f"{stage} | {text}"))
    say(f"the trial succeeded: stage {stage} of {family} was trained on the cluster and its checkpoint verified")

"""How a command gets its config: a YAML file or a family's preset, then trailing `section.key=value` overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from stageline.config import RunConfig

ConfigFile = Annotated[Path | None, typer.Option("-c", "--config", help="YAML config file.", show_default=False)]
FamilyName = Annotated[str | None, typer.Option("--family", help="Model family, with --preset.", show_default=False)]
PresetName = Annotated[str | None, typer.Option("--preset", help="A preset of the family.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the file.")
]
BranchName = Annotated[
    str, typer.Option("--branch", help="Of the family: a second run beside this one, to compare.", show_default=False)
]
Root = Annotated[str, typer.Option("--root", help="Where runs/ and cache/ lie: a folder, s3://… or gs://….")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]

OVERRIDE = re.compile(r"""^[A-Za-z_][\w-]*(\.([\w-][\w/-]*|"[^"]*"|'[^']*'))*=""")


class WithPresets(TyperCommand):
    """A command whose help lists the presets of every family; they are read when somebody asks for it."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """After the options."""
        from stageline.families import FAMILIES, family_config

        with formatter.section("Presets"):
            formatter.write_dl([(name, ", ".join(family_config(name).presets)) for name in sorted(FAMILIES)])
        super().format_epilog(ctx, formatter)


def raw_preset(family: str, preset: str) -> dict[str, Any]:
    """The raw config of a preset; ConfigError names the nearest for one that does not exist."""
    from stageline.families import raw_preset as read_preset

    return read_preset(family, preset)


def read_config(
    file: Path | None, family: str | None, preset: str | None, overrides: Sequence[str] | None
) -> RunConfig:
    """The typed config of a command; ConfigError with every fault at once.

    Checkpoints that the command line names have names there that hold in every folder and on every machine.
    """
    from stageline.families import parse_config

    if file is None and not family:
        _refuse_files(overrides or ())
    raw, where = _read_raw(file, family, preset)
    return _with_named(_reaching(parse_config(raw, overrides or (), where)), raw, overrides or ())


def _refuse_files(words: Sequence[str]) -> None:
    """ConfigError where there is no config, and a word is no setting: it may be the config's file or a preset."""
    from stageline.errors import ConfigError
    from stageline.families import FAMILIES, family_config

    for word in words:
        if "=" in word:
            continue
        families = [name for name in FAMILIES if word in family_config(name).presets]
        if families:
            remedy = f"a preset is named so: --family {families[0]} --preset {word}"
        elif word in FAMILIES:
            remedy = f"a family is named so: --family {word} --preset tiny"
        else:
            remedy = f"a config file is named so: -c {word}"
        raise ConfigError(
            f"{word!r} is no setting of the form section.key=value, and no config is given", remedy=remedy
        )


def _with_named(config: RunConfig, raw: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    """The config, what is typed in `parents` and `evaluate.checkpoints` named as a file would name it."""
    from stageline.checkpoint.layout import name_typed
    from stageline.families import family_config, with_overrides
    from stageline.stage import FROM_SCRATCH
    from stageline.work.evaluations import asked_checkpoints

    typed = with_overrides({"family": raw.get("family")}, overrides)
    roles = typed.get("parents") or {}
    if roles:
        parents = {
            stage: {
                role: name_typed(text, config.root) if role in roles.get(stage, {}) and text != FROM_SCRATCH else text
                for role, text in named.items()
            }
            for stage, named in config.parents.items()
        }
        config = config.model_copy(update={"parents": parents})
    names = (typed.get("evaluate") or {}).get("checkpoints") or {}
    if names:
        stages = family_config(config.family).stages
        checkpoints = {
            name: name_typed(text, config.root) if name in names and text not in stages else text
            for name, text in asked_checkpoints(config).items()
        }
        section = config.evaluate.model_copy(update={"checkpoints": checkpoints})  # type: ignore[attr-defined]  # typed there
        config = config.model_copy(update={"evaluate": section})
    return config


def replaced_notes(
    file: Path | None, family: str | None, preset: str | None, overrides: Sequence[str] | None
) -> list[str]:
    """A sentence for each setting of file or preset, and each earlier word, whose place the command line takes."""
    from stageline.families import overrides_replaced

    raw, _ = _read_raw(file, family, preset)
    return [f"{name}: the command line takes its place" for name in overrides_replaced(raw, overrides or ())]


def _read_raw(file: Path | None, family: str | None, preset: str | None) -> tuple[dict[str, Any], str]:
    """(what file or preset says, how an error names it)."""
    from stageline.config import read_yaml
    from stageline.errors import ConfigError

    if file is not None and (family or preset):
        raise ConfigError("-c and --family/--preset contradict each other", remedy="give one of the two")
    if file is not None:
        return read_yaml(file), str(file)
    if not family:
        raise ConfigError(
            "no config given", remedy="-c FILE, or --family NAME --preset tiny; `stageline init` writes a file"
        )
    return raw_preset(family, preset or "tiny"), f"preset {preset or 'tiny'!r}"


def _reaching(config: RunConfig) -> RunConfig:
    """The config, its S3 reached as its jobs reach it, where nobody said otherwise by environment."""
    s3 = config.cluster.storage.s3
    if s3 is not None and config.root.startswith("s3://"):
        from stageline.store.settings import apply_storage

        apply_storage(s3.model_dump())
    return config


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(others, overrides): `key=value` words that are no existing file are overrides."""
    overrides = [word for word in words if OVERRIDE.match(word) and not Path(word).exists()]
    return [word for word in words if word not in overrides], overrides

"""Prompts of samples: which ones training sees, and what to say of one that it does not; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stageline.config import nearest
from stageline.config.bounds import read_json, read_whole

if TYPE_CHECKING:
    from stageline.families.film_flow.config import FilmFlowConfig

PROMPTS = ("dark branches", "bright branches")
"""Prompts of a prompted picture, in the order of its masks."""
TREE_PROMPT = "branches"
"""Prompt of a picture with one kind of tree."""
PSEUDO_PROMPT = "vessels (pseudo-label)"
SHOWN_PROMPTS = 5
"""Prompts of training that a sentence names."""


def find_prompt(config: FilmFlowConfig, own: str) -> str:
    """The prompt of a sample: the config's for this data set, else its general one, else the data's own."""
    vlm = config.model.vlm_film_config
    return (vlm.prompt_templates or {}).get(config.data.name) or vlm.prompt_template or own


def unseen_prompt(config: FilmFlowConfig) -> str:
    """What to say of `evaluate.prompt` where training sees no such prompt; "" for every other."""
    asked, source = config.evaluate.prompt, config.model.cond_source
    if asked is None:
        return ""
    if "text" not in source and source != "probe":
        return f"evaluate.prompt {asked!r} has no effect: model.cond_source {source!r} asks for no text"
    known = trained_prompts(config)
    if known is None:
        return f"evaluate.prompt {asked!r}: the prompts of training, {config.data.prompts_file!r}, can't be read here"
    if asked in known:
        return ""
    near = nearest(asked.lower(), known)
    hint = f"; did you mean {near!r}?" if near else ""
    shown = ", ".join(map(repr, known[:SHOWN_PROMPTS])) + (", …" if len(known) > SHOWN_PROMPTS else "")
    return f"evaluate.prompt {asked!r} is none that training sees ({shown}), and nobody measured what comes of it{hint}"


def trained_prompts(config: FilmFlowConfig) -> list[str] | None:
    """The prompts that training sees, each once; None where they stand in a file that cannot be read here."""
    if config.data.name == "prompted_trees":
        return list(PROMPTS)
    if config.data.name == "retina":
        return [pseudo_prompt(config)]
    if config.data.name == "folder" and config.data.prompts_file:
        try:
            found = read_json(read_whole(Path(config.data.prompts_file)))
        except (OSError, ValueError):
            return None
        return sorted({str(text) for text in found.values()}) if isinstance(found, dict) else None
    return [find_prompt(config, TREE_PROMPT if config.data.name == "trees" else "")]


def pseudo_prompt(config: FilmFlowConfig) -> str:
    """The prompt of the retina picture, which never hides that its label is none of a person's."""
    prompt = find_prompt(config, PSEUDO_PROMPT)
    return prompt if "pseudo" in prompt else f"{prompt} (pseudo-label)"

"""How a case may be conditioned in an evaluation: by its own condition, none, another case's, the other prompt's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from stageline.errors import ConfigError
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.data.sets import CaseSet
from stageline.objectives.step import seeded

Mode = Literal["on", "off", "shuffle", "swapped"]
"""FiLM as trained; off; with conditions of other cases; with the condition of the same picture's other prompt."""


def deranged(count: int, seed: int) -> list[int]:
    """A permutation in which no case keeps its own place: a random cycle through all of them."""
    cycle: list[int] = torch.randperm(count, generator=seeded("shuffle", seed)).tolist()
    result = [0] * count
    for place, number in enumerate(cycle):
        result[number] = cycle[(place + 1) % count]
    return result


def other_prompts(cases: CaseSet) -> dict[int, int]:
    """Case -> the case of the same picture and box with the next prompt; pictures with one prompt have none."""
    split, partners = cases.split, {}
    for image in range(split.num_images):
        members = {number: split.cases[number] for number in split.cases.of(image)}
        for number, case in members.items():
            mates = [n for n, mate in members.items() if mate.box == case.box]
            after = mates[mates.index(number) + 1 :] + mates[: mates.index(number)]
            other = next((n for n in after if members[n].prompt != case.prompt), None)
            if other is not None:
                partners[number] = other
    return partners


@dataclass(frozen=True)
class Comparison:
    """Which modes an evaluation measures, the first being the one that was asked for, and whose condition each takes.

    shuffled: case -> case, over the whole split, so that it does not depend on batches.
    """

    modes: tuple[Mode, ...]
    shuffled: list[int]
    partners: dict[int, int]

    def sources(self, mode: Mode, index: list[int]) -> list[int]:
        """The cases whose conditions the cases `index` get in a mode."""
        if mode == "shuffle":
            return [self.shuffled[n] for n in index]
        if mode == "swapped":
            return [self.partners[n] for n in index]
        return index


def plan_comparison(config: FilmFlowConfig, cases: CaseSet, *, has_film: bool, per_crop: bool) -> Comparison:
    """The modes of an evaluation. Raises ConfigError for a mode that this model or these data cannot have."""
    asked, movable = config.evaluate.film_mode, has_film and not per_crop and len(cases) > 1
    partners = other_prompts(cases) if movable and "text" in config.model.cond_source else {}
    if not has_film and asked != "on":
        raise ConfigError(
            f"evaluate.film_mode {asked!r}: this checkpoint has no FiLM", remedy="take evaluate.film_mode out"
        )
    if asked == "shuffle" and not movable:
        why = "there is one case" if len(cases) < 2 else "under vlm_scope 'crop' a condition belongs to its window"
        raise ConfigError(f"evaluate.film_mode 'shuffle' cannot be had: {why}", remedy="use evaluate.film_mode=off")
    modes: list[Mode] = [asked]
    if has_film and asked == "on" and config.evaluate.compare_film:
        modes += ["off", *(["shuffle"] if movable else [])]  # type: ignore[list-item]
        modes += ["swapped"] if len(partners) == len(cases) else []
    return Comparison(tuple(modes), deranged(len(cases), config.seed), partners)


def conditions_of(cases: CaseSet, source: str) -> ConditionBundle | None:
    """The prepared conditions of all cases, in their order; None where there are none."""
    vectors, present = cases.split.features
    if not vectors.shape[1]:
        return None
    return ConditionBundle(torch.from_numpy(vectors), torch.from_numpy(present), source=source)

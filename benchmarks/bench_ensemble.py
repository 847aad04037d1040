"""What draws of noise make of one picture's result, and what an ensemble of n of them gains, for film_flow.

Run: `python benchmarks/bench_ensemble.py [CHECKPOINT]`. CHECKPOINT: of the prompted trees of `make demo`; without it
`demo/runs/trees/film`, which `make demo` leaves, or else the demo's recipe is trained anew in a folder that goes again
(about a minute). Every case of the validation split is predicted from 32 draws; an ensemble of n is the mean of n
probabilities, over groups that share none. Takes a minute on one thread.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import stageline
from stageline.data.batches import equal_batches
from stageline.data.prepared import open_prepared
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.data.sets import open_data
from stageline.families.film_flow.measures.metrics import case_metrics
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.sampling import evaluation_sampling, predict_probability
from stageline.verbs.prepare import prepare_data

STAGELINE = Path(sys.executable).parent / "stageline"
TREES = Path("demo/runs/trees/film")
DRAWS = 32
SIZES = (1, 2, 4, 8)
SHOWN = ("dice", "cldice", "junction_f1", "betti0_error")
Scores = Mapping[str, NDArray[np.float64]]


def main() -> None:
    """Print a line per size of an ensemble, as a table of Markdown."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1 or TREES.is_dir():
        report(sys.argv[1] if len(sys.argv) > 1 else str(TREES))
        return
    with tempfile.TemporaryDirectory() as folder:
        recipe = ("--family", "film_flow", "--preset", "tiny", f"root={folder}", "run=trees")
        done = subprocess.run([str(STAGELINE), "run", *recipe], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"training ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        report(f"{folder}/runs/trees/film")


def report(checkpoint: str) -> None:
    """Measure one checkpoint."""
    draws, truths, steps = predict_draws(checkpoint)
    print(f"\n{checkpoint}: {len(truths)} cases, {DRAWS} draws of noise each")
    print("| draws | network evaluations | " + " | ".join(SHOWN) + " | spread of a case | spread of the mean |")
    print("|---" * (len(SHOWN) + 4) + "|")
    for size in SIZES:
        scores = score_ensembles(draws, truths, size)
        means = " | ".join(f"{scores[name].mean():.4f}" for name in SHOWN)
        dice = scores["dice"]
        alone = float(np.sqrt(dice.var(axis=0, ddof=1).mean()))
        print(f"| {size} | {size * steps} | {means} | {alone:.4f} | {dice.mean(axis=1).std(ddof=1):.4f} |", flush=True)


def predict_draws(checkpoint: str) -> tuple[list[NDArray[np.float32]], list[NDArray[np.bool_]], int]:
    """Of each case: probabilities (DRAWS, H, W), and the true mask; and the network evaluations of one draw."""
    model = stageline.load(checkpoint)
    config = model.config
    assert isinstance(model, FilmFlowModel)
    assert isinstance(config, FilmFlowConfig)
    data = open_data(config, open_prepared(prepare_data(config).reference))
    cases, sampling = data.case_set(config.evaluate.split), replace(evaluation_sampling(config), ensemble=1)
    draws: list[NDArray[np.float32]] = []
    truths: list[NDArray[np.bool_]] = []
    nfe = 0
    for index in equal_batches(range(len(cases)), cases.size, config.evaluate.batch_size):
        batch = data.collate([cases[number] for number in index])
        found = [
            predict_probability(
                model, batch.image, batch.condition, batch.ids, replace(sampling, seed=draw), heat=batch.heat
            )
            for draw in range(DRAWS)
        ]
        nfe = found[0].nfe
        draws += list(torch.stack([one.mean[:, 0] for one in found], dim=1).numpy())
        truths += list(batch.mask[:, 0].numpy() > 0.5)
    return draws, truths, nfe


def score_ensembles(draws: list[NDArray[np.float32]], truths: list[NDArray[np.bool_]], size: int) -> Scores:
    """Metric -> (ensembles, cases) of all groups of so many draws."""
    groups = DRAWS // size
    scores = {name: np.zeros((groups, len(truths))) for name in SHOWN}
    for case, (maps, truth) in enumerate(zip(draws, truths, strict=True)):
        for group in range(groups):
            found = case_metrics(maps[group * size : (group + 1) * size].mean(axis=0) > 0.5, truth)
            for name in SHOWN:
                scores[name][group, case] = found[name]
    return scores


if __name__ == "__main__":
    main()

"""The whole way of panorama_vlm on small data: a model that knows where things are. Called by `make demo-panorama`.

Made-up rooms have four coloured walls; the questions are about directions. The tower and the language model are tiny
and made here (the language model has read sentences, and no picture). Three stages are trained with nine views that
overlap by half, then resampler and adapters again with five views that do not overlap, from the same vision checkpoint;
both are measured on rooms whose colours were never trained, and compared. Everything is done by the commands it prints;
what they write lies under `demo/panorama`, and a second time they find it there.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stageline.families.panorama_vlm.base_weights import write_language, write_tower

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).with_name("stageline")
FOLDER = Path("demo/panorama")
CONFIG = FOLDER / "config.yaml"
HALF, NONE = "overlap-0.5", "overlap-0"
"""The two runs."""
TEXT = f"""\
# Directions in made-up rooms; see docs/panorama_vlm.md.
family: panorama_vlm
root: {FOLDER}
model:
  vision_name: {FOLDER}/base/vision
  language_model_name: {FOLDER}/base/language
  resampler_type: mlp
  resampler_config: {{hidden: 64}}
vicreg: {{projector_width: 64}}
lora: {{rank: 16, alpha: 32, dropout: 0.0, target_modules: [q_proj, k_proj, v_proj, o_proj]}}
data: {{name: rooms, num_train: 400, num_val: 16, num_test: 60}}
text: {{max_text_length: 64}}
generation: {{max_new_tokens: 12}}
evaluate: {{batch_size: 32, controls: [shuffled, rolled]}}
trainer: {{accelerator: cpu, precision: 32-true, batch_size: 32, accumulate_grad_batches: 1, weight_decay: 0.01}}
stage_overrides:
  vision: {{trainer.max_steps: 40, trainer.batch_size: 8, trainer.learning_rate: 1.0e-3}}
  resampler: {{trainer.max_steps: 300, trainer.learning_rate: 3.0e-3}}
  finetune: {{trainer.max_steps: 900, trainer.learning_rate: 2.0e-3, model.resampler_learning_rate_scale: 0.75}}
"""
OVERLAP_0 = "image_processing.overlap_ratio=0"
VISION = f"runs/{HALF}/vision/anyres-e2p_mlp/best.ckpt"
STEPS = (
    (
        ("plan", "-c", str(CONFIG), f"run={HALF}"),
        "What would be done with nine views that overlap by half?",
    ),
    (
        ("run", "-c", str(CONFIG), f"run={HALF}"),
        "Nine views, all three stages. Rows are grouped by picture: what questions about one picture have in common,\n"
        "and where they differ, is what teaches a direction.",
    ),
    (
        (
            "run",
            "-c",
            str(CONFIG),
            f"run={NONE}",
            "image_processing.overlap_ratio=0",
            f"parents.resampler.default={VISION}",
        ),
        "Five views without overlap, from the same vision checkpoint: the tower sees single views, so its weights\n"
        "serve any overlap; resampler and adapters are trained anew.",
    ),
    (
        ("compare", f"{FOLDER}/runs/{HALF}", f"{FOLDER}/runs/{NONE}"),
        "Does the overlap make a difference that 240 questions can show?",
    ),
)
"""Command and what it is for."""
SHOWN = ("exact_match", "exact_match_shuffled", "exact_match_rolled")
MEANING = {
    "exact_match": "rooms whose colours were never trained",
    "exact_match_shuffled": "the same questions about pictures of other rows",
    "exact_match_rolled": "the panorama turned by a quarter, against the answer of before",
}


def main() -> int:
    """Make weights and config, run every command; returns the exit code of the first one to fail."""
    begin = time.monotonic()
    folder = ROOT / FOLDER
    if not (folder / "base" / "language" / "config.json").exists():
        print(
            "Tiny base weights: a random tower, and a language model that reads 200 batches of sentences.", flush=True
        )
        write_tower(folder / "base" / "vision")
        loss = write_language(folder / "base" / "language", show)
        print(f"the language model spells answers: loss {loss:.3f} per token (what is left is which colour)")
    (ROOT / CONFIG).write_text(TEXT, encoding="utf-8")
    for words, text in STEPS:
        code = run_command(words, text)
        if code:
            return code
    print()
    for run in (HALF, NONE):
        print_scores(folder / "runs" / run)
    print(f"Done in {time.monotonic() - begin:.0f} s. The reports, one file each, for a browser:")
    for run in (HALF, NONE):
        print(f"  {FOLDER}/runs/{run}/report.html")
    return 0


def show(done: int, total: int, what: str) -> None:
    """A line every fifty steps."""
    if done % 50 == 0:
        print(f"  {what}: {done} of {total}", flush=True)


def run_command(words: Sequence[str], text: str) -> int:
    """Say what comes, print the command as it can be copied, run it to its end; returns its exit code."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")
    print(f"$ stageline {shlex.join(words)}", flush=True)
    return subprocess.run([str(PROGRAM), *words], cwd=ROOT, check=False).returncode


def print_scores(run: Path) -> None:
    """How often an answer of a run is right, beside its controls."""
    for path in sorted((run / "evaluations").glob("*/metrics.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        said = record["provenance"]
        print(f"{run.name}: {said['plan']}; {said['image_tokens']} image tokens")
        for name in SHOWN:
            print(f"  {name:<22}{record['metrics'][name]:>8.3f}   {MEANING[name]} ({record['num_samples'][name]})")
        print()


if __name__ == "__main__":
    sys.exit(main())

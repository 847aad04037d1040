"""Writes manifests/jobs: per stage of every family a ready PyTorchJob and its NetworkPolicy, as `stageline job render`
prints them.

Each stands for itself: its pod prepares the data where they are missing and starts from what its run has. Run by
`make render`; a test holds the files equal to a fresh rendering.
"""

from __future__ import annotations

from pathlib import Path

from stageline import __version__
from stageline.families import FAMILIES, parse_config, raw_preset
from stageline.jobs.cluster.inspect.manifest import objects_yaml
from stageline.pipeline.items import free_job, item_names, place_config

FOLDER = Path(__file__).resolve().parents[1] / "manifests" / "jobs"
PRESET = "tiny"
SETTINGS = (
    "run=tiny",
    "root=/stageline",
    "cluster.namespace=stageline",
    f"cluster.image=stageline/trainer:{__version__}",
    "cluster.storage.claim=stageline-data",
    "cluster.resources.requests={cpu: 500m, memory: 1Gi}",
    "cluster.resources.limits={memory: 4Gi}",
)
HEAD = """\
# Stage {stage} of {family}, preset {preset}; written by `make render` from `stageline job render`, change nothing here.
# Apply it once the stage before has succeeded. It wants the claim stageline-data and the account stageline-trainer in
# the namespace stageline, and its image where the nodes find it. `kubectl delete -f` takes job and NetworkPolicy.
"""


def job_texts() -> dict[str, str]:
    """File name -> YAML of every stage's job."""
    texts = {}
    for family in FAMILIES:
        config = place_config(parse_config(raw_preset(family, PRESET), SETTINGS), {})
        for number, stage in enumerate(item_names(config)[1:-1], 1):
            head = HEAD.format(stage=stage, family=family, preset=PRESET)
            texts[f"{number}-{family.replace('_', '-')}-{stage}.yaml"] = head + objects_yaml(*free_job(config, stage))
    return texts


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in job_texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")

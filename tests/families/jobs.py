"""The stages of each family's preset `tiny` as jobs that are handed their data and parents by reference.

`python -m tests.families.jobs` writes the goldens anew; `make render` calls it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from stageline.families import FAMILIES, family_config, parse_config, raw_preset
from stageline.jobs.cluster.inspect.manifest import objects_yaml
from stageline.pipeline.items import make_job, place_config
from stageline.stage import stage_config
from stageline.work.work import stage_places

GOLDENS = Path(__file__).parents[1] / "golden" / "pytorchjob" / "tiny"
DIGEST = "sha256:" + "0123456789abcdef" * 4
SETTINGS = (
    "run=tiny",
    "root=/stageline",
    f"cluster.image=registry.example.org/stageline/trainer@{DIGEST}",
    "cluster.storage.claim=stageline-data",
)


def job_texts(name: str) -> str:
    """The YAML of the jobs of every stage that the preset selects, in order. name: the family's."""
    family = family_config(name)
    config = place_config(parse_config(raw_preset(name, "tiny"), SETTINGS), {})
    places = stage_places(config, family)
    texts = []
    for stage in family.selected(config):
        own = stage_config(config, stage)
        parents = [
            f"--parent={role}=/stageline/runs/tiny/{places[source]}/checkpoints/step-00000010@{DIGEST}"
            for role, source in stage.parents.items()
        ]
        data = f"--data=/stageline/cache/prepared/sets/4f1c@{DIGEST}"
        job = make_job(config, stage.name, ("train", stage.name, data, *parents), "3f9c1a2b" * 8, own)
        texts.append(objects_yaml(job, own.cluster))
    return "---\n".join(texts)


if __name__ == "__main__":
    FAMILIES["toy"] = "toy_family"
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for _name in FAMILIES:
        (GOLDENS / f"{_name}.yaml").write_text(job_texts(_name), encoding="utf-8")

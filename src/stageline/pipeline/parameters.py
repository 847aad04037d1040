"""The parameters of every pipeline, said once: components, pipelines and docs/pipeline.md follow from this table.

`make render` writes `components/steps.py` and the compiled pipelines anew; `request` reads the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Store = Literal["any", "s3", "claim"]
"""Pipelines that have a parameter: all, those whose store is S3, those whose store is a claim."""
Reading = Literal["word", "path", "count", "names", ""]
"""How the text of a parameter becomes the value of a config key; "" where `request` gives it a meaning of its own."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a pipeline. All can be left out.

    name: as people give it.  meaning: one sentence for them, without a full stop.
    default: "" and 0 say that nobody gave it.
    key: the config key that it sets; "" for none of its own.  reading: how.
    store: which pipelines have it.
    of_steps: whether the steps get it; else it says where they run.
    mounted: the default in pipelines, where it names something that is mounted if it exists; steps have "".
    """

    name: str
    meaning: str
    default: str | int = ""
    key: str = ""
    reading: Reading = ""
    store: Store = "any"
    of_steps: bool = True
    mounted: str = ""

    @property
    def pipeline_default(self) -> str | int:
        """The default that a pipeline shows."""
        return self.mounted or self.default

    def is_of(self, store: Store) -> bool:
        """Whether the pipelines of this store have it."""
        return self.store in ("any", store)


PARAMETERS = (
    Parameter("config", "The run's config as YAML text (kfp's command line takes JSON apart); or give preset"),
    Parameter("preset", "A preset of the family instead of config, e.g. tiny"),
    Parameter("run", "Name of the run; the same name continues it", key="run", reading="word"),
    Parameter(
        "root", "Where runs and caches lie: s3://bucket/folder, or a folder of the claim", key="root", reading="path"
    ),
    Parameter(
        "stages",
        "Stages to train, separated by spaces or commas; empty takes the config's, as a rule all",
        key="stages",
        reading="names",
    ),
    Parameter(
        "overrides",
        "Config keys that win over everything, section.key=value, separated by spaces or lines, or a YAML list",
    ),
    Parameter("image", "Trainer image of the jobs, best as name@sha256:digest", key="cluster.image", reading="word"),
    Parameter("workers", "Pods of a stage; 0 takes the config's", 0, key="trainer.nodes", reading="count"),
    Parameter(
        "processes", "Ranks in each of those pods; 0 takes the config's", 0, key="trainer.processes", reading="count"
    ),
    Parameter("namespace", "Where the jobs run; empty is the pipeline's own", key="cluster.namespace", reading="word"),
    Parameter("launcher", "What stages run as, pytorchjob, or local for inside the step itself", "pytorchjob"),
    Parameter("launcher_image", "Image of the pipeline's steps", of_steps=False),
    Parameter(
        "defaults",
        "ConfigMap with the defaults of the namespace, which the chart makes; need not exist",
        of_steps=False,
        mounted="stageline",
    ),
    Parameter(
        "s3_endpoint",
        "URL of an S3 server that is not AWS' own",
        key="cluster.storage.s3.endpoint",
        reading="word",
        store="s3",
    ),
    Parameter("s3_region", "Region of the bucket", key="cluster.storage.s3.region", reading="word", store="s3"),
    Parameter(
        "s3_secret",
        "Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; need not exist with workload identity",
        key="cluster.storage.s3.secret",
        reading="word",
        store="s3",
        mounted="stageline-s3",
    ),
    Parameter(
        "s3_ca",
        "ConfigMap with the ca.crt of a private S3 server; need not exist",
        key="cluster.storage.s3.ca_config_map",
        reading="word",
        store="s3",
        mounted="stageline-s3-ca",
    ),
    Parameter(
        "claim",
        "PersistentVolumeClaim mounted into steps and jobs; ReadWriteMany for several nodes",
        key="cluster.storage.claim",
        reading="word",
        store="claim",
        mounted="stageline",
    ),
)
"""In the order in which people read them."""

OF_THE_PIPELINE = ("family", "kfp_run", "branch")
"""What every step gets besides: the family, the id of KFP's run, and the branch whose step it is with what that shares
with the main run, as words `<branch> <stage>=<reference> ...`; "" for the main run's own."""

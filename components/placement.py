"""Where a step's own pod stands on a cluster: image, user, resources, storage. `kfp.local` ignores all of it.

What a step trains does not run here but in jobs of its own; `cluster` in the config says where those stand. The
service account is none of a pipeline's settings: KFP takes the run's.
"""

from kfp import dsl, kubernetes

from stageline.pipeline.attempts import NUM_RETRIES

SECRETS = "/var/run/secrets/stageline"
"""Below it the library looks for the files of the store: `s3` (credentials) and `ca` (ca.crt)."""
MOUNT_PATH = "/stageline"
"""Where a claim is mounted, the same in steps and in jobs: `cluster.storage.mount_path`."""


DEFAULTS = "/etc/stageline"
"""There the library looks for the defaults of the namespace: the chart's ConfigMap."""


POD_LABELS = {"app.kubernetes.io/name": "stageline", "app.kubernetes.io/component": "launcher"}
"""The chart's NetworkPolicy lets nobody reach pods with these: a step serves nothing."""

RETRIED_FOR = "168h"
"""From the first start of a step on, as Argo counts it: a stage that was evicted after days is tried again, too."""


def place(task: dsl.PipelineTask, name: str, image: str, defaults: str) -> dsl.PipelineTask:
    """A step under Pod Security Standard `restricted`, without KFP's cache: its key is not content.

    KFP can be told that its user is not root; that it gains no privileges, has no capabilities and the runtime's
    seccomp profile, its backend adds by itself. After which errors a step is tried again, the step decides. It has no
    environment of ours: what a config says of one is for the pods of jobs.
    name: shown to people.  image: the launcher's.  defaults: that ConfigMap, by name. Both are constants or parameters
    of the pipeline.
    """
    task.set_display_name(name).set_caching_options(False).set_container_image(image)
    task.set_cpu_request("100m").set_memory_request("256Mi").set_cpu_limit("2").set_memory_limit("2Gi")
    task.set_retry(NUM_RETRIES, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration=RETRIED_FOR)
    for key, value in POD_LABELS.items():
        kubernetes.add_pod_label(task, key, value)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.use_config_map_as_volume(task, defaults, DEFAULTS, optional=True)
    return kubernetes.set_security_context(task, run_as_non_root=True)


def with_s3(task: dsl.PipelineTask, secret: str, authority: str) -> dsl.PipelineTask:
    """Credentials and certificate authority of S3 as files, where there are any.

    secret: a Secret; without it the service account's workload identity counts.  authority: a ConfigMap with `ca.crt`.
    """
    kubernetes.use_secret_as_volume(task, secret, f"{SECRETS}/s3", optional=True)
    return kubernetes.use_config_map_as_volume(task, authority, f"{SECRETS}/ca", optional=True)


def with_claim(task: dsl.PipelineTask, claim: str) -> dsl.PipelineTask:
    """The claim that holds the store."""
    return kubernetes.mount_pvc(task, claim, MOUNT_PATH)

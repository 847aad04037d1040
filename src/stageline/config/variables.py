"""Which environment variables of training pods a config may set: those of a list, with values that load no code.

A variable can make any program load a library, run a file or ask another server, and a config is often somebody else's
text. What is not listed belongs into the image, whose variables stay as they are.
"""

from __future__ import annotations

import re

from stageline.config.addresses import link_local_fault

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_WORDS = {
    *("SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "PWD", "TOKEN", "TOKENS", "APIKEY", "BEARER"),
    *("CREDENTIAL", "CREDENTIALS", "KEY", "KEYS", "COOKIE"),
}
_SECRET_VALUE = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\b(?:hf_|ghp_|gho_|glpat-|xox[bp]-)[A-Za-z0-9_-]{8,}|://[^/\s:@]+:[^/\s@]+@"
)
_OWN_ENV = re.compile(
    r"(PET|STAGELINE|TORCHELASTIC)_.*|POD_NAME|POD_UID|POD_IP|NODE_NAME|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_(ADDR|PORT)"
)
_TUNING = re.compile(
    r"(NCCL|RCCL|TORCH_NCCL|GLOO|UCX|UCC|FI|RDMAV|MLX5|OMP|GOMP|KMP|MKL|OPENBLAS)_[A-Z0-9_]+"
    r"|CUDA_(LAUNCH_BLOCKING|DEVICE_MAX_CONNECTIONS|DEVICE_ORDER|MODULE_LOADING)|CUBLAS_WORKSPACE_CONFIG"
    r"|NVIDIA_TF32_OVERRIDE|HSA_OVERRIDE_GFX_VERSION|PYTORCH_(CUDA_|HIP_)?ALLOC_CONF"
    r"|TORCH_(DISTRIBUTED_DEBUG|CPP_LOG_LEVEL|LOGS|SHOW_CPP_STACKTRACES)|MALLOC_ARENA_MAX"
    r"|TOKENIZERS_PARALLELISM|(HF_HUB|HF_DATASETS|TRANSFORMERS)_OFFLINE|TZ|LANG|LC_ALL"
    r"|WANDB_(ENTITY|PROJECT|MODE)|MLFLOW_EXPERIMENT_NAME"
)
"""Numbers, words and names of devices."""
_READ_FILES = re.compile(r"NCCL_(TOPO_FILE|GRAPH_FILE|TUNER_CONFIG_PATH)|HF_(HOME|HUB_CACHE)")
"""Places that are read as data."""
_SERVERS = re.compile(r"(HTTPS?_PROXY|https?_proxy)|MLFLOW_TRACKING_URI|WANDB_BASE_URL")
_HOSTS = re.compile(r"NO_PROXY|no_proxy")
_PLACES = re.compile(r".*_(FILE|PATH|DIR)")
_ACTING = re.compile(r".*_(COMMAND|CMD|EXEC|LIBRARY|LIBRARIES|MAIL_TO|STATS_DEST|VERBOSE_INIT|COMM_ID|RAS_ADDR)")
"""Of the names above those that name a program to start, a library to load, a file to write without saying so, a
receiver of mail, or an address to meet at or to serve (UCX, OMPT, NCCL)."""
LOGS = frozenset(
    {
        *("all", "aot", "autograd", "c10d", "ddp", "distributed", "dtensor", "dynamic", "dynamo", "export"),
        *("fsdp", "inductor", "torch", "aot_graphs", "aot_joint_graph", "bytecode", "cudagraphs", "ddp_graphs"),
        *("fusion", "graph", "graph_breaks", "graph_code", "graph_sizes", "guards", "kernel_code", "output_code"),
        *("perf_hints", "post_grad_graphs", "pre_grad_graphs", "recompiles", "recompiles_verbose", "schedule"),
    }
)
"""Names in TORCH_LOGS. Any other may be a module: torch imports it with all that is in it, to look for its logs."""
LISTED = (
    "NCCL_*, GLOO_*, UCX_*, FI_*, OMP_*, MKL_* and their like, torch's and CUDA's switches, proxies, "
    "addresses of experiment trackers (docs/config.md)"
)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name looks like a credential."""
    return bool(_SECRET_WORDS & set(re.split(r"[_.-]", name.upper())))


def env_fault(name: str, value: str) -> str:
    """What is wrong with a variable of `cluster.env`; "" for one that a config may set."""
    if not _ENV_NAME.fullmatch(name):
        return f"{name!r} is no name of an environment variable"
    if _OWN_ENV.fullmatch(name):
        return f"{name} is set by stageline or torchrun itself"
    if is_secret_name(name) or _SECRET_VALUE.search(value):
        return (
            f"{name} looks like a credential, and what stands in env is readable by everybody who may see the job; "
            "keep it in a Secret (cluster.storage.s3.secret, or cluster.mounts for other files)"
        )
    if _SERVERS.fullmatch(name):
        if not name.upper().endswith("_PROXY") and not value.startswith(("http://", "https://")):
            return f"{name} {value!r} is no http:// or https:// URL"
        fault = link_local_fault(value if "://" in value else f"//{value}")
        return f"{name}: {fault}" if fault else ""
    if _READ_FILES.fullmatch(name) or _HOSTS.fullmatch(name):
        return ""
    if name == "TORCH_LOGS":
        unknown = sorted({word.strip().lstrip("+-") for word in value.split(",")} - LOGS)
        return f"{name} {value!r}: torch would import {unknown}; expected names of {sorted(LOGS)}" if unknown else ""
    if not _TUNING.fullmatch(name) or _PLACES.fullmatch(name) or _ACTING.fullmatch(name):
        return f"{name} is no variable that a config may set ({LISTED}); others belong into the image"
    if "/" in value:
        return f"{name} {value!r}: a path in a variable can load code; put the file into the image and name it there"
    return ""

"""What to do about a failure of a known kind, in our words: for records that a pod wrote, or anybody below the root.

Such a record says what happened; what a reader is asked to do is never taken from it. A process of ours that was
started here tells its own remedy, which knows more.
"""

from __future__ import annotations

from collections.abc import Mapping

_AGAIN = "start it again to continue from the last checkpoint"
_LOG = "the last lines of its log tell more: stageline job logs"
_CLUSTER = "stageline doctor tells what of the cluster is wrong"

REMEDIES: Mapping[str, str] = {
    "config": "mend the key of the config that it names",
    "data": "mend or leave out the files that it names, then run again",
    "checkpoint": "stageline checkpoint verify and lineage tell what of it is wrong",
    "store": "check root, cluster.storage and their credentials: stageline doctor",
    "plan": "stageline plan tells why, and both ways out",
    "training": "look at the curves in the report; lower the learning rate, or check the data",
    "out_of_memory": "lower trainer.batch_size and raise trainer.accumulate_grad_batches, or raise "
    "cluster.resources.limits.memory; /dev/shm counts too (cluster.shared_memory)",
    "disk_full": "free room where root lies: stageline checkpoint prune; in a pod raise cluster.scratch or "
    "cluster.shared_memory",
    "busy": "wait until the other one has ended, or end it",
    "missing_part": "use the trainer image of this version",
    "cluster": _CLUSTER,
    "deadline": "submit it again with a later deadline; it continues from the last checkpoint",
    "restart_budget": "mend what ends its pods and start again; it continues from the last checkpoint",
    "pending": "ask for less (cluster.resources), or raise cluster.pending_seconds",
    "doctor": _CLUSTER,
    "step_failed": _LOG,
    "interrupted": "run again to continue",
    "peer_lost": f"the rank that ended first tells why; {_AGAIN}",
    "store_unavailable": _AGAIN,
    "cluster_unavailable": _AGAIN,
    "node_lost": _AGAIN,
    "killed": _AGAIN,
    "crashed": "a fault in native code: look at its last lines, versions of driver and libraries, and the node's log",
    "error": _LOG,
    "fault": _LOG,
}
"""Kind of a record -> remedy; what is not here has none."""

"""`stageline-entry`: the first process of a trainer pod. Starts the ranks, tells how they ended, leaves a record.

pod        what the pod was told: arguments, job, config, place among the nodes, deadline
finished   whether what was asked for is committed already
watching   one program with all it starts: lines, signals, deadline, an agent that hangs
rank       between torchrun and a rank: prefixes its lines, notes how it ended
ends       from the ends of ranks to one verdict: fix it (1-127) or try again (128-255)
memory     whether the kernel killed for want of memory
segments   the log in the store
outlets    the failure record: termination message of the pod, and in the store
course     what an attempt works with; one program, run and judged
attempt    from the first line to the exit code
trial      data, training and check of one stage in one pod

torchrun ends in 1 whatever its ranks did, and the training-operator starts a pod again by its exit code alone. Loads no
torch.
"""

from __future__ import annotations


def main() -> int:
    """The console script; returns the pod's exit code."""
    from stageline.execute.entry.attempt import run_entry

    return run_entry()

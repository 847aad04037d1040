"""What runs in a trainer pod: `stageline-entry` starts the ranks, tells how they ended, leaves a record. No torch.

settings  what the pod was told: arguments, job, config, place among the nodes, deadline
finished  whether what was asked for is committed already
program   one program with all it starts: lines, signals, deadline, an agent that hangs
rank      between torchrun and a rank: prefixes its lines, notes how it ended
verdict   from the ends of ranks to one: fix it (1-127) or try again (128-255)
memory    whether the kernel killed for want of memory
sinks     what a pod leaves behind: log and failure record in the store, termination message
attempt   what an attempt works with; one program, run and judged
entry     from the first line to the exit code
trial     data, training and check of one stage in one pod

torchrun ends in 1 whatever its ranks did, and the training-operator starts a pod again by its exit code alone.
"""

"""Starting a stage: a job is a value, rendering it is pure, and what was started ends with its starter. No torch.

job        what to start and how its end is judged
process    what the kernel offers against orphans
local      start, follow and cancel a job on this machine
"""

"""An item as a job: a value, rendered purely, ended with its starter. No torch.

job          what to start, its name, and how its end is judged
environment  what its processes are told, written and read
processes    what the kernel offers against orphans
local        start, follow and cancel a job on this machine
step_lines   how a step talks to whoever follows it
placement    whether a config can become jobs; `defaults` what its namespace says
cluster      the same job as a PyTorchJob
trial        a trial of an installation
"""

"""What the pipeline's components call: JSON-able in, references out. Loads no torch: training starts as a job.

steps      the bodies, one per component
request    the pipeline's parameters as one config, the same in every step
artifacts  what a step shows of its answer in KFP
journal    what a step in a pod writes down in the run, where no driver does
body       what every step has around it: cancellation, progress lines, the failure record
receipt    answers given before, taken again while what they point to is unchanged
process    a verb as a process here or a PyTorchJob on the cluster, followed and cancelled
"""

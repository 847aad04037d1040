"""What the pipeline's components call: JSON-able in, references out. Loads no torch: training starts as a process.

steps      the bodies, one per component
body       what every step has around it: cancellation, progress lines, the failure record
receipt    answers given before, taken again while what they point to is unchanged
process    a verb as a process, followed and cancelled
"""

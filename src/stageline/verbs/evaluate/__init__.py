"""The verb evaluate: one checkpoint through admission, the family's metrics, written once per checkpoint and mode.

record       where an evaluation lies and what it says; no torch
evaluation   making one
"""

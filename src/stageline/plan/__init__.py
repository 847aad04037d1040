"""What a run will do, computed from stages, config and what lies in the store. Writes nothing, loads no torch.

record     a plan and its items as data
parents    the checkpoints a stage starts from
decision   one stage: run, reuse, continue or blocked, and why
making     all of them in order
"""

from __future__ import annotations

from stageline.plan.making import make_plan
from stageline.work.record import PLAN, Item, Plan, blocked_error

__all__ = ["PLAN", "Item", "Plan", "blocked_error", "make_plan"]

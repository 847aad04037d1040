"""What a run will do, computed from stages, config and what lies in the store. Writes nothing, loads no torch.

making     all items of a run in order, as `work` decides them
"""

from __future__ import annotations

from stageline.plan.making import make_plan, plan_branch
from stageline.work.record import PLAN, Item, Plan, blocked_error

__all__ = ["PLAN", "Item", "Plan", "blocked_error", "make_plan", "plan_branch"]

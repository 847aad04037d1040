"""`stageline doctor`: what of an installation is right, wrong or hidden from here, with the command that mends it.

Every check stands for itself, has a time-out and changes nothing that stays: objects are sent to the API server as dry
runs, the store gets one small object that is removed again. Loads no torch; talks to Kubernetes through `kube.client`.
"""

from __future__ import annotations

from stageline.doctor.examination import Setup, examine
from stageline.doctor.line import Line, State, raise_if_wrong

__all__ = ["Line", "Setup", "State", "examine", "raise_if_wrong"]

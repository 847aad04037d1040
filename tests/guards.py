"""How long tests wait for something that should have come: guards against hangs, not against a slow machine."""

from __future__ import annotations

HANG_SECONDS = 600
"""Ten times the longest wait on a quiet two-core machine: a whole `stageline run` of tiny stages with nothing compiled
takes under 60 s there. What is shorter waits as long, because a guard says nothing about speed."""

TEST_SECONDS = 4 * HANG_SECONDS
"""pytest's own `timeout` for one test with its fixtures, which make up to four such waits: theirs end first, with
words. Stands in pyproject.toml, too."""

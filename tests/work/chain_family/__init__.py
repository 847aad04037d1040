"""A family of three stages and no torch half, for tests of decisions: base, middle from base, last from both."""

"""The tests' own family, laid out as a room: two parents by role, a partly external module, a loss over ranks."""

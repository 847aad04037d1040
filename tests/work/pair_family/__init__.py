"""A family of two roles that take either of two stages, and no torch half: only tensors tell which is which."""

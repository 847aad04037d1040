"""sparse_structure: scenes of 3D objects from a sparse-structure flow with a branch that sees the whole scene."""

"""A family of two stages for the trainer's own tests: base trains everything, tune trains body and head from it."""

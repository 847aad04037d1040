"""The decision: what each item of a run depends on, where its result lies, and whether it is to be made. No torch."""

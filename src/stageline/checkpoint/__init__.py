"""Checkpoints: layout, commit protocol, metadata, admission, retention; importing this package loads nothing."""

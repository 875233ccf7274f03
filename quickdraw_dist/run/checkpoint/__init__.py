"""Checkpoints: the format, copies of the state, when to save, what may resume."""

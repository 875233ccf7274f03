"""Checkpoints: their files, a copy of the state, saving in the background, resuming."""

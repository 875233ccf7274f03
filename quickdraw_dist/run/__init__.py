"""One run on disk and on screen: its folder, lock, checkpoints, progress and report."""

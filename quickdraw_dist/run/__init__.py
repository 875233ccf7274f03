"""One run on disk and on screen: its folder, lock, progress lines."""

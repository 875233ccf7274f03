"""Render synthetic drawings of random strokes, for trials without any data."""

"""Synthetic drawings: made of random strokes, for trials without any data."""

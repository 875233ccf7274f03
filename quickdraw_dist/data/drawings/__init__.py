"""Drawings and where they come from: Google's files, synthetic strokes, the official classes."""

"""Drawings as pen strokes: arrays, official files, and the official simplification."""

"""Measure a model on a split: metrics, charts, one HTML page."""

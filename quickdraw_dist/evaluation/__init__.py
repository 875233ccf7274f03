"""A model measured on a split: metrics, charts, one HTML page."""

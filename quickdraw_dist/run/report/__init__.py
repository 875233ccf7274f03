"""A run as one page: its history, curves, HTML."""

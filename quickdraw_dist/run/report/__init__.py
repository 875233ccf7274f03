"""A run as one page: its history, curves and HTML."""

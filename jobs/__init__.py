"""What one runs: each is ``python -m jobs.NAME``."""

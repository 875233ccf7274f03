"""The commands besides training, each ``python -m jobs.NAME``: parse, call, print."""

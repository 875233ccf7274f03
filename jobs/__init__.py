"""The commands besides training, each ``python -m jobs.NAME``: parse, call, print."""

from quickdraw_dist.base.process.cpus import share_processors

share_processors()  # before a command imports torch

"""Resident mode: a rank reads the drawings of its lanes once and keeps them in memory, the
device's or the host's. The order is that of the streaming loader, proved by the same digest.
"""

"""This process: its CPUs, parent, locks, output and garbage collector; light to import."""

"""Many processes as one run: ranks, signals, exits, agreement, watchdog."""

"""What a process measures of itself: metrics, phases, device times."""

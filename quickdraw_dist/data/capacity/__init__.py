"""What a dataset and a run will need, computed before either exists (jobs.plan)."""

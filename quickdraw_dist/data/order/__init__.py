"""Which drawing comes when, and what it takes to deliver it: pure functions, no I/O."""

"""Which drawing comes when, and what it takes to deliver it: no store, reader or thread."""

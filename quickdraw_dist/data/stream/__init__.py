"""Reading a dataset: which drawing at which step, the node cache, the loader."""

"""Writing a dataset: which drawing goes where, the bytes of a block, shards, the manifest."""

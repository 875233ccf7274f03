"""Write a dataset: the plan of which drawing goes where, blocks, shards, the manifest."""

"""From shards to batches on the device: node cache, reader, ring, loaders."""

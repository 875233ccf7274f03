"""From Google's files to batches on the device."""

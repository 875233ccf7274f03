"""Somebody else's WebDataset tars (stream.reader: webdataset)."""

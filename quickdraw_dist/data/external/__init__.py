"""Read WebDataset tars that this project did not write (stream.reader: webdataset)."""

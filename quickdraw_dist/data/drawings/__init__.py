"""Read drawings from Google's files or render synthetic ones; the official classes."""

"""Requests to Google Cloud Storage: checked, timed, retried and counted."""

"""What everything else stands on: settings, errors, storage, telemetry; no torch at import."""

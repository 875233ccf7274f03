"""The metrics that dashboards and alerts are written against."""

UNITS = {
    "drawings": "",
    "steps": "",
    "skipped_steps": "",
    "restarts": "",
    "epoch": "",
    "loss": "",
    "learning_rate": "",
    "gradient_norm": "",
    "step_seconds": "seconds",
    "data_wait_seconds": "seconds",
    "host_to_device_seconds": "seconds",
    "store_requests": "",
    "store_bytes": "bytes",
    "store_retries": "",
    "store_errors": "",
    "cache_hits": "",
    "cache_bytes": "bytes",
    "checkpoint_seconds": "seconds",
    "checkpoint_pause_seconds": "seconds",
    "checkpoint_failures": "",
    "last_step_timestamp_seconds": "seconds",
    "device_memory_bytes": "bytes",
    "evaluation_accuracy_ratio": "ratio",
    "goodput_seconds": "seconds",
}
"""Unit of each metric by its name without the prefix `quickdraw_`."""

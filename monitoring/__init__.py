"""Prometheus alerts, and the Grafana dashboard from one list of panels."""

"""Anomaly detection: the joint score, its fit, and detection metrics."""

"""Comparison of the hybrid with its two arms: runs, measurements, statistics, verdicts and a report."""

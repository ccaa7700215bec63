"""Is the hybrid's claim true? Arms, runs, measurements, statistics, verdicts and the report of a comparison."""

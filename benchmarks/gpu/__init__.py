"""Checks and timings on one NVIDIA GPU: `benchmarks/gpu/run.sh` runs the modules here, each a stage of its own."""

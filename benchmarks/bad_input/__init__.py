"""What becomes of damaged files: ``python -m benchmarks.bad_input``."""

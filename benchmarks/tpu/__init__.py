"""What a train step needs on TPU slices, compiled without one: ``python -m benchmarks.tpu``."""

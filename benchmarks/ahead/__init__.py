"""What a train step needs on TPU slices and H100s, without one: ``python -m benchmarks.ahead``."""

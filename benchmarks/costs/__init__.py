"""What a LoRA train step costs by each way to write it: ``python -m benchmarks.costs``."""

"""What several benchmarks need: the llamas, training whole, taking turns, FLOPs and memory."""

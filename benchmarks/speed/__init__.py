"""How near a train step comes to the device's matrix products: ``python -m benchmarks.speed``."""

"""Functional low-rank adapters for any JAX function of a parameter tree."""

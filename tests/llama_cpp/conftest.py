from fast_compiles import compile_fast_and_once


def pytest_configure(config):
    """Compiles fast, and what any test or process of one has compiled no more."""
    compile_fast_and_once(config)

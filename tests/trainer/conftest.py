from fast_compiles import compile_fast_and_once
from small_runs import finished, flags, make_llama, rows, tiny  # noqa: F401


def pytest_configure(config):
    """Compiles fast, and what any test or process of one has compiled no more."""
    compile_fast_and_once(config)

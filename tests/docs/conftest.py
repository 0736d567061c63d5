"""The site's pages: their code, their links, and what of them is made."""

from fast_compiles import compile_fast_and_once
from laws import nothing_registered_stays as nothing_registered_stays


def pytest_configure(config):
    """Compiles fast, and what any test or process of one has compiled no more."""
    compile_fast_and_once(config)

"""Programs are compiled as fast as in tests/library."""

from fast_compiles import compile_fast

compile_fast()

"""What plain `pytest` does for some families, starts and programs, done for all or for many."""

from fast_compiles import compile_fast

compile_fast()

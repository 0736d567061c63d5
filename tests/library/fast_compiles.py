"""Makes JAX fast on tests: tracing and optimising them is most of the work."""

import contextlib
import gc
import os

import jax

# Loops by XLA's own emitter instead of MLIR's, each program in one piece: half the time to compile.
# What a program costs stays the same within 0.1 %. A release without these flags would not start,
# so they are for those that are known to have them.
PLAIN_LOOPS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def enough_threads():
    """So many that some are left when a few programs wait for others, on any number of cores.

    XLA has as many threads as cores, or as devices. LAPACK's solves of many matrices hold one while
    they wait for others to do a part, and so does a device that waits for the rest of its mesh: two
    at once on two cores stop for good. Before JAX starts.
    """
    os.environ.setdefault("NPROC", "64")


def compile_fast(**options):
    """Sets this and other options of JAX, here and for the processes that tests start.

    Before anything runs: XLA reads its flags once. Tracing makes many small objects, few of them
    in cycles, and to look for cycles at Python's own pace takes a tenth of the time.
    """
    enough_threads()
    gc.set_threshold(20_000, 20, 20)
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.__version_info__ < (0, 11) and PLAIN_LOOPS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {PLAIN_LOOPS}".strip()
    for name, value in ({"jax_disable_most_optimizations": True} | options).items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


@contextlib.contextmanager
def compiled_as_ever():
    """With XLA's optimisations and anew: for costs and collectives, which are those of users."""
    changed = {"jax_disable_most_optimizations": False, "jax_enable_compilation_cache": False}
    for name, value in changed.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in changed.items():
            jax.config.update(name, not value)


def compile_fast_and_once(config):
    """The same, and what a test or an earlier run of pytest has compiled is not compiled again.

    Each of pytest's own processes has its folder: JAX reads entries that another still writes.
    """
    if not hasattr(config, "cache"):  # a run without pytest's cache
        return compile_fast()
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    return compile_fast(
        jax_compilation_cache_dir=str(config.cache.mkdir(f"jax-{worker}")),
        jax_persistent_cache_min_compile_time_secs=0.0,
        jax_persistent_cache_min_entry_size_bytes=-1,
    )

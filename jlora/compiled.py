"""Keeps compiled programs on disk, those that took a second: the next run does not compile them.

``compiled.keep()``, once, before anything is compiled.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import jax


def keep() -> Path | None:
    """Turns on JAX's cache of compiled programs; gives its folder, or None when there is none.

    What is set already holds (``JAX_COMPILATION_CACHE_DIR``), and
    ``JAX_ENABLE_COMPILATION_CACHE=0`` turns it off. Otherwise the folder is ``jlora/compiled`` in
    the user's folder for caches (``XDG_CACHE_HOME``, ``~/.cache``); it may be deleted at any time.
    A folder that can't be made is done without.
    """
    config: Any = jax.config
    if not config.jax_enable_compilation_cache:
        return None
    if config.jax_compilation_cache_dir is None:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
            caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            folder = Path(caches) / "jlora" / "compiled"
            folder.mkdir(parents=True, exist_ok=True)
            config.update("jax_compilation_cache_dir", str(folder))
    chosen = config.jax_compilation_cache_dir
    return Path(chosen) if chosen else None

import os
import subprocess
import sys

import jax
import pytest

from jlora import compiled

PROGRAM = """
import jax
from jlora import compiled

print(compiled.keep())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(1.0)
"""


@pytest.fixture
def unset():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_program_is_kept_in_the_users_folder_for_caches(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**clean, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    folder = tmp_path / "jlora" / "compiled"
    assert run.stdout.strip() == str(folder)
    assert any(file.name.startswith("jit__lambda") for file in folder.iterdir())


def test_a_folder_that_was_chosen_already_holds(tmp_path, monkeypatch, unset):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "chosen"))
    assert compiled.keep() == tmp_path / "chosen"
    assert not (tmp_path / "caches").exists()


def test_a_cache_that_is_switched_off_stays_off(tmp_path, monkeypatch, unset):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert compiled.keep() is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not (tmp_path / "caches").exists()


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path, monkeypatch, unset):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiled.keep() is None

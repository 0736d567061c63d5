"""A base that lies over two processes has the fingerprint of one; its adapter lies so too."""

import json

import pytest
from bases_of_two import bases

from jlora import checkpoint


def test_a_base_over_two_processes_is_told_from_another_as_in_one(pair, tmp_path):
    """Leaves that are cut, copied, both, and kept in few bits, on automatic and explicit axes."""
    both = pair("fingerprints")
    first, second = both.told()
    assert both.status() == [0, 0], both.errors
    assert first == second
    base, other = bases()
    want = checkpoint.fingerprint(base)
    *told, own, trees = first
    for axes, (found, refused) in zip(("Auto", "Explicit"), (told[:2], told[2:]), strict=True):
        assert json.loads(found) == want
        assert "cut: the shape agrees, the values are others" in refused
        assert "of 4 leaves 1 differ" in refused.lower()
        checkpoint.restore(tmp_path / axes, base=base)
        with pytest.raises(ValueError, match="cut: the shape agrees, the values are others"):
            checkpoint.restore(tmp_path / axes, base=other)
    assert own == (
        f"ValueError: {tmp_path / 'own'} can't be saved: 3 of 3 arrays lie on devices of one "
        "process alone: cut/a, cut/b, cut/scaling. Expected each on those of all 2 processes: lay "
        "an adapter out as its base with jax.device_put(lora, jlora.shardings(frozen, lora))"
    )
    checkpoint.restore(tmp_path / "own", base=base)  # what it says to do
    assert trees.startswith(
        "ValueError: the leaves of the base: the processes differ: both is None"
    )

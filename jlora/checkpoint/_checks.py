"""Whether an adapter is whole: its factors, its configuration and the base that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _words
from jlora._config import LoraConfig
from jlora._lora_dict import Lora, of_leaves, shared_of
from jlora._node import Node
from jlora.checkpoint._fingerprint import differences, fingerprint


def check_factors(lora: Mapping[str, Node]) -> None:
    """Refuses factors of which one does not fit another.

    Raises:
        ValueError: naming each leaf where that is so.
    """
    shared = shared_of(lora)
    misfits = {path: node.misfit(node.shape, shared) for path, node in of_leaves(lora).items()}
    if problems := [f"{path}: {problem}" for path, problem in misfits.items() if problem]:
        raise ValueError(f"the factors do not fit each other:{_words.first_few(problems)}")


def check_ranks(lora: Mapping[str, Node], config: LoraConfig) -> None:
    """Refuses ranks that the configuration does not give.

    Raises:
        ValueError: naming each leaf with both ranks.
    """
    problems = []
    for path, node in of_leaves(lora).items():
        if not node.targeted:
            continue
        ranks = config.ranks_for(path)
        if node.rank not in (ranks if isinstance(ranks, tuple) else (ranks,)):
            problems.append(f"{path}: it has rank {node.rank}, the configuration says {ranks}")
    if problems:
        raise ValueError(
            f"the factors are not those of the configuration:{_words.first_few(problems)}"
        )


def check_base(directory: Path, expected: Mapping[str, Any], base: Any, lora: Lora) -> None:
    """Refuses a base other than the ``expected`` one, of which the fingerprint was kept.

    What the adapter replaces may be another, as a fresh head is that begins at random.

    Raises:
        ValueError: naming everything that differs.
    """
    found = fingerprint(base)
    expected, found = (
        {path: leaf for path, leaf in each.items() if path not in lora or not lora[path].replaces}
        for each in (expected, found)
    )
    if lines := differences(expected, found):
        raise ValueError(
            f"{directory} was trained on another base than the one given. "
            f"{_other_level(expected, found)}Of "
            f"{len(expected.keys() | found.keys())} leaves {len(lines)} differ:"
            f"{_words.first_few(lines)}"
        )


def _other_level(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """A sentence where one tree is a branch of the other, as linen's params of its variables."""
    for small, large, words in (
        (expected, found, "The base is the branch {!r} of the tree given. "),
        (found, expected, "The tree given is the branch {!r} of the base. "),
    ):
        first = next(iter(small), "")
        for path in large:
            branch = path.removesuffix(f"/{first}")
            if branch != path and all(f"{branch}/{name}" in large for name in small):
                return words.format(branch)
    return ""

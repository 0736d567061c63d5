"""How a leaf is named, and how a pattern finds leaves by their names."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jlora._frozen_leaf import is_frozen_leaf


def flatten(tree: Any) -> tuple[dict[str, Any], Any]:
    """The leaves of a tree by their paths (``layers/attn/q_proj/kernel``), and its structure.

    A frozen leaf that is no array is one leaf.

    Raises:
        ValueError: when two leaves have the same path, as ``{"a": {"b": ...}, "a/b": ...}``.
    """
    return _by_path(jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_frozen_leaf))


def arrays(tree: Any) -> tuple[dict[str, Any], Any]:
    """The arrays of a tree by their paths, also those in frozen leaves, and its structure."""
    return _by_path(jax.tree_util.tree_flatten_with_path(tree))


def count(tree: Any) -> int:
    """How many leaves `flatten` finds."""
    return len(jax.tree.leaves(tree, is_leaf=is_frozen_leaf))


def _by_path(flat: tuple[list[tuple[Any, Any]], Any]) -> tuple[dict[str, Any], Any]:
    pairs, structure = flat
    leaves: dict[str, Any] = {}
    for path, leaf in pairs:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise ValueError(f"two leaves of the tree have the path {name!r}: rename one of them")
        leaves[name] = leaf
    return leaves, structure


def find(patterns: str | Iterable[str], paths: Iterable[str], *, what: str) -> list[str]:
    """The paths in which any of the patterns is found, in the order of ``paths``.

    Raises:
        ValueError: when a pattern is no regular expression, or finds nothing: with the nearest
            paths. ``what`` names the patterns in the message.
    """
    paths = list(paths)
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{what} {pattern!r} is no regular expression: {error}") from None
        matched = [path for path in paths if expression.search(path)]
        if not matched:
            raise ValueError(
                f"{what} {pattern!r} matches none of the {len(paths)} paths. "
                f"{nearest(pattern, paths)}"
            )
        found.update(matched)
    return [path for path in paths if path in found]


def nearest(pattern: str, paths: Iterable[str], count: int = 5) -> str:
    """One sentence that names the paths most like the pattern, each as a whole or in a part."""
    paths = list(paths)

    def likeness(path: str) -> float:
        if path.endswith(f"/{pattern}") or pattern.endswith(f"/{path}"):
            return 2.0  # the same leaf, in a tree with more levels or fewer
        words = [word for word in re.split(r"[^A-Za-z0-9_]+", pattern) if word]
        parts = [path, *path.split("/")]
        ratios = (
            difflib.SequenceMatcher(None, word.lower(), part.lower()).ratio()
            for word in words or [pattern]
            for part in parts
        )
        return max(ratios, default=0.0)

    ranked = sorted(paths, key=likeness, reverse=True)[:count]
    if paths == [""]:
        return "The tree is one array, whose path is '': \"^$\" matches that."
    return f"The nearest: {', '.join(map(shown, ranked))}." if ranked else "The tree has no leaves."


_SPAN = re.compile(r"(?:^|/)(\d+)-(\d+)(?:-([1-9]\d*))?(?=/|$)")


def span(path: str) -> range | None:
    """The layers by which a stack is named: of ``layers/3-60/attn/...`` the range from 3 to 60.

    ``layers/3-47-4`` are every fourth.
    """
    found = _SPAN.search(path)
    if found is None:
        return None
    named = range(int(found[1]), int(found[2]) + 1, int(found[3] or 1))
    return named or None


def numbers(path: str, layers: int) -> range:
    """The numbers of a stack's layers: from 0 on, unless it is named by them."""
    named = span(path)
    return range(layers) if named is None or len(named) != layers else named


def shown(path: str) -> str:
    """A path as messages show it: a tree that is one array has the empty one."""
    return path or "''"


def key_for(key: jax.Array, path: str) -> jax.Array:
    """A key that depends on the path and not on the order of leaves (the same on any platform)."""
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise ValueError(f"the key is {key!r}: expected a random key, such as jax.random.key(0)")
    digest = hashlib.sha256(path.encode()).digest()
    return jax.random.fold_in(key, int.from_bytes(digest[:4], "big"))

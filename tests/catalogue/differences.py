"""How far the lifted program is from the merged one, and how far it may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from program import Results, narrow

FLOAT32 = 2e-5  # of the largest entry


def slack(dtypes: list[Any], rounds: list[float]) -> float:
    """What the coarsest of the types may lose: 2**-5 for bfloat16, 2**-8 for float16.

    ``rounds`` are the steps to which the program rounds its values itself.
    """
    steps = [float(jnp.finfo(dtype).eps) for dtype in dtypes if narrow(dtype)]
    return 4 * max([*steps, *rounds], default=0.0)


def differences(
    results: dict[str, Results], slack: float, moved: dict[str, Results] | None = None
) -> Iterator[str]:
    """What is wrong with the lifted program, in words.

    Where types are narrow, it may be three times as far from the exact program as the merged one
    is, and the ``slack``. ``moved`` are the results for a weight that is off by a rounding: as far
    as that moves the merged program, neither is right.
    """
    for part, name in enumerate(("value", "gradient")):
        trees = {kind: pair[part] for kind, pair in results.items()}
        if jax.tree.structure(trees["lifted"]) != jax.tree.structure(trees["merged"]):
            yield f"{name}: {jax.tree.structure(trees['lifted'])}"
            continue
        paths = [
            jax.tree_util.keystr(path)
            for path, _ in jax.tree_util.tree_leaves_with_path(trees["lifted"])
        ]
        leaves = {kind: jax.tree.leaves(tree) for kind, tree in trees.items()}
        again = jax.tree.leaves(moved["merged"][part]) if moved else leaves["merged"]
        for at, path in enumerate(paths):
            entry = {kind: leaves[kind][at] for kind in leaves}
            if problem := _of_leaf(**entry, moved=again[at], slack=slack):
                yield f"{name}{path}: {problem}"


def _of_leaf(merged, lifted, moved, slack, exact=None) -> str | None:
    if (lifted.dtype, lifted.shape) != (merged.dtype, merged.shape):
        return f"{lifted.dtype}{lifted.shape}, not {merged.dtype}{merged.shape}"
    exact = merged if exact is None else exact
    merged, lifted, moved, exact = map(_as_numbers, (merged, lifted, moved, exact))
    known = np.isfinite(merged) & np.isfinite(exact)
    # where neither overflows in the narrow type alone
    same = ~known & ((merged == exact) | (np.isnan(merged) & np.isnan(exact)))
    if (bad := known & np.isnan(lifted)).any():
        return f"NaN in {bad.sum()} of {bad.size} entries where the merged program has none"
    if (bad := known & np.isinf(lifted)).any():
        return f"infinite in {bad.sum()} of {bad.size} entries, not in the merged program"
    if (bad := same & ~((lifted == exact) | (np.isnan(lifted) & np.isnan(exact)))).any():
        return f"not {exact[bad][0]} in {bad.sum()} of {bad.size} entries as the merged program"
    size = max(np.abs(exact[known]).max(initial=0), 1e-3)
    off = np.abs(lifted - exact)[known].max(initial=0) / size
    merged_off = np.abs(merged - exact)[known].max(initial=0) / size
    steady = known & np.isfinite(moved)
    moved_by = np.abs(moved - merged)[steady].max(initial=0) / size
    if off > max(FLOAT32, slack) + 3 * merged_off + 10 * moved_by:
        return f"off by {off:.1e} of the largest entry (merged: {merged_off:.1e})"
    return None


def _as_numbers(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.astype("complex128" if np.iscomplexobj(array) else "float64")

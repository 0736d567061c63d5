"""Tensors of a file, layer by layer, into the stacked tree of the decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jlora.models._config import DecoderConfig
from jlora.models._decoder import Decoder
from jlora.models._tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model's file or folder: all but the weights, which are read one by one when asked for."""

    config: DecoderConfig
    tokenizer: Tokenizer
    names: Mapping[str, str]  # for each of our paths the tensor's name, with {} for the layer
    shapes: Mapping[str, tuple[int, ...]]  # the tensors that are there
    read: Callable[[str, str], np.ndarray]  # (our path, tensor's name) -> as the file has it
    dtype: Callable[[str], np.dtype]  # tensor's name -> what `read` gives
    ignored: Collection[str]  # tensors that may be there and are not needed
    where: str  # for messages

    def tensors(self) -> dict[str, list[str]]:
        """The names of the tensors that make each leaf, by our path: one a layer, or one.

        Raises:
            ValueError: naming all tensors that are missing, of another shape, or not expected.
        """
        plan: dict[str, list[str]] = {}
        problems: list[str] = []
        for path, shape in expected(self.config).items():
            layers = shape[0] if stacked(path) else 1
            plan[path] = [self.names[path].format(layer) for layer in range(layers)]
            want = in_file(path, shape[1:] if stacked(path) else shape)
            for name in plan[path]:
                if name not in self.shapes:
                    problems.append(f"{name} is missing")
                elif tuple(self.shapes[name]) != want:
                    problems.append(f"{name} has shape {tuple(self.shapes[name])}, expected {want}")
        known = {name for tensors in plan.values() for name in tensors} | set(self.ignored)
        problems += [f"{name} is not expected" for name in self.shapes if name not in known]
        if problems:
            more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
            listed = "\n  ".join(problems[:8])
            raise ValueError(f"{self.where} does not fit its own configuration:\n  {listed}{more}")
        return plan

    def layer(self, path: str, name: str) -> np.ndarray:
        """One tensor of a leaf, as the decoder has it."""
        tensor = self.read(path, name)
        return tensor.T if path.endswith("/kernel") else tensor


def assemble(opened: Opened, dtype: Any) -> dict[str, Any]:
    """The parameters as a plain nested dict of arrays.

    Each stack is filled in place, one layer at a time: the file's tensors are never all in memory.

    Raises:
        ValueError: when the tensors are not those of the configuration.
    """
    shapes = expected(opened.config)
    params: dict[str, jax.Array] = {}
    for path, tensors in opened.tensors().items():
        leaf = np.empty(shapes[path], jnp.dtype(dtype))
        for layer, name in enumerate(tensors):
            leaf[layer if stacked(path) else ...] = opened.layer(path, name)
        params[path] = jnp.asarray(leaf)
    return flax.traverse_util.unflatten_dict(params, sep="/")


def stacked(path: str) -> bool:
    """Whether the leaf holds all layers."""
    return path.startswith("layers/")


def in_file(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a file of one layer of a leaf: kernels act from the left there."""
    return shape[::-1] if path.endswith("/kernel") else shape


def expected(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters, by path."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    tree = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)["params"]
    flat: dict[str, Any] = dict(flax.traverse_util.flatten_dict(tree, sep="/"))
    return {path: leaf.shape for path, leaf in flat.items()}

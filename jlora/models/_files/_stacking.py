"""Tensors of a file, layer by layer, into the stacked tree of the model, whole or in slices."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jlora import _paths, _words
from jlora.models._files import _boxes, _held
from jlora.models._files._boxes import Box
from jlora.models._files._kept import Kept
from jlora.models._files._tensor import Tensor
from jlora.models._files._torch_tensors import (
    Stored,
    from_stored,
    oriented,
    oriented_box,
    places,
    stored_shapes,
)
from jlora.models._net._encoder_config import Config
from jlora.models._net._kinds import net_of
from jlora.models._text._tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model's file or folder: all but the weights, which are read one by one when asked for."""

    config: Config
    tokenizer: Tokenizer
    leaves: Mapping[str, Stored]  # how each of our leaves lies in the file, as `stored_of` asks
    shapes: Mapping[str, tuple[int, ...]]  # the tensors that are there
    tensor: Callable[[str], Tensor]  # by its name, in the file's orientation
    dtype: Callable[[str], np.dtype]  # of a tensor, without reading it
    ignored: Collection[str]  # tensors that may be there and are not needed
    where: str  # for messages
    second_head: str | None = None  # a tensor that must be the embedding, which is the head
    told: tuple[str, ...] = ()  # what a person should know, a line each
    aside: Collection[str] = ()  # tensors of parts of the model that are not read: of vision, say
    # a quantised tensor as it is stored; None for one that is not, or that is changed on the way
    kept: Callable[[str], Kept | None] = lambda name: None

    def check(self) -> None:
        """Nothing, if the file holds the tensors that its configuration asks for.

        Raises:
            ValueError: naming all tensors that are missing, of another shape, or not expected.
        """
        paths = expected_shapes(self.config)
        if unknown := [path for path in paths if in_any_stack(path) not in self.leaves]:
            raise ValueError(
                f"{self.where}: a {self.config.family} model has no {', '.join(unknown)}"
            )
        if self.config.layers > len(self.shapes):
            raise ValueError(
                f"{self.where} does not fit its own configuration: {self.config.layers} layers, "
                f"but {len(self.shapes)} tensors"
            )
        problems: list[str] = []
        used: set[str] = set()
        for path, shape in paths.items():
            for layer in layers_of(path, shape):
                wanted = self._tensors(path, layer, per_layer(path, shape))
                used |= wanted.keys()
                for name, want in wanted.items():
                    if name not in self.shapes:
                        problems.append(f"{name} is missing")
                    elif tuple(self.shapes[name]) != want:
                        have = tuple(self.shapes[name])
                        problems.append(f"{name} has shape {have}, expected {want}")
                    else:
                        problems += self._unreadable(name)
        if self.second_head is not None:
            problems += self._unreadable(self.second_head)
        known = used | set(self.ignored)
        problems += [f"{name} is not expected" for name in self.shapes if name not in known]
        if problems:
            listed = _words.first_few(problems, 8)
            raise ValueError(f"{self.where} does not fit its own configuration:{listed}")

    def checking_head(self) -> Opened:
        """The same, in which reading compares the embedding with a head that should be it.

        What is read of the one is read of the other; a ValueError says where they differ.
        """
        if self.second_head is None:
            return self
        embedding, second = self.leaves["embed/embedding"].name, self.second_head

        def tensor(name: str) -> Tensor:
            its = self.tensor(name)
            if name != embedding:
                return its
            head = self.tensor(second)

            def read(box: Box) -> np.ndarray:
                values = its.read(box)
                if head.shape != its.shape or not np.array_equal(head.part(box), values):
                    raise ValueError(
                        f"{self.where}: tie_word_embeddings is true, but {second} is not "
                        f"{embedding}. Where the head is right, set tie_word_embeddings to false "
                        "in config.json; where it is left over, remove it from the file"
                    )
                return values

            return dataclasses.replace(its, read=read)

        return dataclasses.replace(self, tensor=tensor)

    def check_head(self) -> None:
        """Raises the error of `checking_head`; embedding and head are read for that."""
        if self.second_head is not None:
            self.checking_head().read(self.leaves["embed/embedding"].name)

    def read(self, name: str) -> np.ndarray:
        """A whole tensor by its name, in the file's orientation."""
        return self.tensor(name).whole()

    def _unreadable(self, name: str) -> list[str]:
        try:
            self.dtype(name)
        except ValueError as error:
            return [str(error)]
        return []

    def layer(self, path: str, layer: int, shape: tuple[int, ...]) -> np.ndarray:
        """One layer of a leaf, of this shape, as the model has it; read from the file."""
        its = stored_of(self.leaves, path)
        return from_stored(its, layer, shape, _Read(self.shapes, self.read))

    def dtype_of(self, path: str, layer: int, shape: tuple[int, ...]) -> np.dtype:
        """The widest dtype of the tensors that hold this layer of a leaf."""
        return functools.reduce(
            jnp.promote_types, map(self.dtype, self._tensors(path, layer, shape))
        )

    def placed(self, path: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Box]]:
        """The tensors of a leaf of this shape, and where each lies in it as the file has it."""
        its = stored_of(self.leaves, path)
        held = _boxes.shape(oriented_box(its, _boxes.whole(shape)))
        for at, layer in enumerate(layers_of(path, shape)):
            fused = self._fused(its, layer)
            for name, index in places(its, layer, per_layer(path, shape), fused=fused).items():
                yield name, _boxes.of((at, *index) if stacked(path) else index, held)

    def expected(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors that the configuration asks for, by name."""
        return {
            name: want
            for path, shape in expected_shapes(self.config).items()
            for layer in layers_of(path, shape)
            for name, want in self._tensors(path, layer, per_layer(path, shape)).items()
        }

    def _tensors(self, path: str, layer: int, shape: tuple[int, ...]) -> dict[str, Any]:
        its = stored_of(self.leaves, path)
        return stored_shapes(its, layer, shape, fused=self._fused(its, layer))

    def _fused(self, its: Stored, layer: int) -> bool:
        return its.name.format(layer) in self.shapes


def assemble(
    opened: Opened,
    dtype: Any,
    shardings: Mapping[str, NamedSharding] | None = None,
    small: Callable[[str, tuple[int, ...]], Any] = lambda path, shape: None,
) -> dict[str, Any]:
    """The parameters as a plain nested dict of arrays.

    Each stack is filled in place, one layer at a time: the file's tensors are never all in memory.
    What only other processes hold is not read.

    Args:
        opened: a model's file or folder.
        dtype: of the parameters; buffers are float32.
        shardings: how each leaf lies on devices, by its path; all on one if None.
        small: what stands in the place of the array of this path and shape, if something does.

    Raises:
        ValueError: when the file does not hold the tensors that its configuration asks for, or a
            weight has no finite value in ``dtype``.
    """
    opened.check()
    opened = opened.checking_head()
    params: dict[str, Any] = {}
    for path, shape in expected_shapes(opened.config).items():
        if (leaf := small(path, shape)) is not None:
            params[path] = leaf
            continue
        its = stored_of(opened.leaves, path)
        sharding = None if shardings is None else shardings[path]
        kept = jnp.dtype(jnp.float32 if its.kind == "buffer" else dtype)
        held = _held.empty(shape, kept, sharding)
        as_in_file = {oriented_box(its, box): oriented(its, held[box]) for box in held}
        for name, place in opened.placed(path, shape):
            if not _fill(as_in_file, place, opened.tensor(name)):
                raise ValueError(
                    f"{opened.where}: {path} has values that {kept.name} can't hold: load it "
                    "as bfloat16 or float32"
                )
        params[path] = _held.joined(shape, sharding, held)
    return flax.traverse_util.unflatten_dict(params, sep="/")


def _fill(held: Mapping[Box, np.ndarray], place: Box, tensor: Tensor) -> bool:
    """Puts what lies in the boxes that are held there; whether they can hold it."""
    for target, values in _held.of_tensor(held, place, tensor):
        with np.errstate(over="ignore"):  # the caller says it
            target[...] = values
        if overflowed(values, target):
            return False
    return True


def overflowed(weight: np.ndarray, cast: np.ndarray) -> bool:
    """Whether a cast has lost a finite value, which a narrower range alone can do."""
    if jnp.finfo(cast.dtype).max >= jnp.finfo(weight.dtype).max:
        return False
    return bool(np.isfinite(weight).all()) and not np.isfinite(cast).all()


class _Read(Mapping[str, np.ndarray]):
    """A file's tensors, each read when it is asked for."""

    def __init__(self, names: Collection[str], read: Callable[[str], np.ndarray]):
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stacked(path: str) -> bool:
    """Whether the leaf holds layers, all of them or those that its path names."""
    return path.startswith("layers/")


def layers_of(path: str, shape: tuple[int, ...]) -> range:
    """The numbers of the layers that a leaf holds; 0 alone for one that holds none."""
    return _paths.numbers(path, shape[0]) if stacked(path) else range(1)


def stored_of(leaves: Mapping[str, Stored], path: str) -> Stored:
    """A leaf's entry in a table that has one for the leaves of all stacks."""
    return leaves[in_any_stack(path)]


def in_any_stack(path: str) -> str:
    """``layers/attn/q_proj/kernel``, whichever layers the path names."""
    return _NAMED.sub("layers/", path)


_NAMED = re.compile(r"^layers/\d+-\d+(-\d+)?/")


def per_layer(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the stack's dimension."""
    return shape[1:] if stacked(path) else shape


def expected_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters, by path.

    Args:
        config: of the model.

    Example:
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> shapes = models.expected_shapes(config)
        >>> shapes["embed/embedding"], shapes["layers/attn/q_proj/kernel"]
        ((3, 8), (1, 8, 8))
    """
    return dict(_shapes(config))


@functools.lru_cache(maxsize=64)  # a model is asked for them again and again
def _shapes(config: Config) -> Mapping[str, tuple[int, ...]]:
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    tree = jax.eval_shape(net_of(config).init, jax.random.key(0), tokens)["params"]
    flat: dict[str, Any] = dict(flax.traverse_util.flatten_dict(tree, sep="/"))
    return {path: leaf.shape for path, leaf in flat.items()}

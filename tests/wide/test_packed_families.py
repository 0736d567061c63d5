"""Texts that share a sequence are what each would be alone, in every family of decoders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_settings import SETTINGS, config_of, random_params

from jlora.models import Decoder
from jlora.models._net import _attention

FIRST, LENGTH = 7, 18  # tokens of the first text and of both; blocks of 5 queries


@pytest.mark.parametrize("family", SETTINGS)
def test_packed_texts_have_the_states_and_gradients_of_texts_alone_in(family, monkeypatch):
    monkeypatch.setattr(_attention, "_block_size", lambda length: 5)
    config = config_of(family)
    if config.rope_scaling is not None and hasattr(config.rope_scaling, "max_position"):
        stretched = dataclasses.replace(config.rope_scaling, max_position=3)
        config = dataclasses.replace(config, rope_scaling=stretched)
    decoder, params = Decoder(config), random_params(config)
    tokens = jax.random.randint(jax.random.key(1), (1, LENGTH), 0, 37)
    segments = (jnp.arange(LENGTH) >= FIRST).astype(int)[None]

    def packed(params):
        hidden = decoder.apply({"params": params}, tokens, segments, method="hidden")
        return jnp.sum(jnp.sin(hidden)), hidden

    def alone(params):
        texts = tokens[:, :FIRST], tokens[:, FIRST:]
        each = [decoder.apply({"params": params}, text, method="hidden") for text in texts]
        hidden = jnp.concatenate(each, axis=1)
        return jnp.sum(jnp.sin(hidden)), hidden

    if config.linear is not None:  # its state would go on from one text to the next
        with pytest.raises(ValueError, match="linear attention carries its state"):
            packed(params)
        return
    got, wanted = (jax.jit(jax.grad(fn, has_aux=True))(params) for fn in (packed, alone))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        size = jnp.abs(other).max() + 1e-30
        np.testing.assert_allclose(one / size, other / size, rtol=0, atol=1e-5)

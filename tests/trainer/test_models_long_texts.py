"""Texts longer than the original length, at which long RoPE changes its factors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from family_settings import abstract_params, config_of, random_params

from jlora.models import Decoder
from jlora.models._answers._generate import Rules, generate
from jlora.models._net._rotary import rotary

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1, 2, 2, 3, 4],
    "long_factor": [2, 4, 6, 8, 9],
}


def test_a_text_turns_by_its_own_length_and_not_by_that_of_its_neighbours():
    config = config_of("phi3", original_max_position_embeddings=20, rope_scaling=LONGROPE)
    positions = jnp.array([[0, 4, 19], [0, 4, 20]])
    lengths = jnp.array([[20], [21]])
    cos, sin = rotary(config, positions, lengths, jnp.float32, local=False)
    sharp = math.sqrt(1 + math.log(64 / 20) / math.log(20))
    for row, factors in ((0, "short_factor"), (1, "long_factor")):
        divided = 10000.0 ** -(np.arange(5) / 5) / np.array(LONGROPE[factors])
        angles = np.asarray(positions)[row, :, None] * divided
        np.testing.assert_allclose(cos[row, :, 0], sharp * np.cos(angles), atol=1e-5)
        np.testing.assert_allclose(sin[row, :, 0], sharp * np.sin(angles), atol=1e-5)


def test_answers_that_grow_past_the_original_length_are_those_without_a_cache():
    config = config_of("phi3", original_max_position_embeddings=20, rope_scaling=LONGROPE)
    params, decoder = random_params(config), Decoder(config)
    prompts, count, width = [list(range(3, 19)), [5, 9, 30, 12]], 10, 16
    tokens = np.zeros((2, width), np.int32)
    starts = jnp.array([width - len(prompt) for prompt in prompts], np.int32)
    for line, prompt in enumerate(prompts):
        tokens[line, starts[line] :] = prompt
    rules = Rules(np.array([-1], np.int32), {})
    keys = jax.random.split(jax.random.key(0), 2)
    written = generate(decoder, params, jnp.asarray(tokens), starts, keys, rules, count)
    for line, prompt in enumerate(prompts):
        text = np.array([[*prompt, *written[line].tolist()]])
        follows = lambda text: np.asarray(decoder.apply({"params": params}, text)).argmax(-1)[0]  # noqa: E731
        short, long = follows(text[:, :20]), follows(text)
        # the first text passes 20 tokens on its way, the second does not
        want = [*short, *long[20:]] if len(long) > 20 else short
        assert written[line].tolist() == [int(token) for token in want[len(prompt) - 1 : -1]]


def test_answers_that_stay_within_the_original_length_have_no_second_way():
    def program(original):
        settings = {"original_max_position_embeddings": original, "rope_scaling": LONGROPE}
        decoder = Decoder(config_of("phi3", **settings))
        params = abstract_params(decoder.config)
        rules = Rules(np.array([-1], np.int32), {})
        keys = jax.random.split(jax.random.key(0), 1)
        run = lambda params: generate(  # noqa: E731
            decoder, params, jnp.ones((1, 8), int), jnp.zeros(1, int), keys, rules, 8
        )
        return str(jax.make_jaxpr(run)(params))

    assert "cond[" in program(15)
    assert "cond[" not in program(16)

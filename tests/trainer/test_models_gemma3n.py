"""What Gemma 3n has and no other family: each part by hand, borrowed keys, files with some left."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from family_settings import SETTINGS, config_of
from safetensors.numpy import load_file, save_file

from jlora import models
from jlora.models import LayerInputs
from jlora.models._net._altup import AltUp, gathered, spread
from jlora.models._net._borrowing import keys_of, lenders
from jlora.models._net._decoder import empty_cache
from jlora.models._net._layer_inputs import InputsOfLayers
from jlora.models._net._sparse_gate import largest, sparsity_of

CONFIG = config_of("gemma3n_text")
RNG = np.random.default_rng(0)


def drawn(shape):
    return RNG.normal(size=shape).astype("f")


def rms(x):
    return np.sqrt((x * x).mean(axis=-1, keepdims=True))


def test_streams_are_predicted_and_corrected_by_shares_that_depend_on_the_token():
    streams, computed = drawn((3, 2, 5, 22)), drawn((2, 5, 22))
    altup = AltUp(CONFIG, 3)
    params = {
        "router_norm": {"scale": drawn(22)},
        **{
            name: {"kernel": drawn(shape)}
            for name, shape in (
                ("router", (22, 3)),
                ("prediction", (3, 9)),
                ("correction", (3, 3)),
            )
        },
    }
    routed = lambda x: np.tanh(  # noqa: E731
        x / rms(x) * params["router_norm"]["scale"] / 22 @ params["router"]["kernel"]
    )
    predicted, corrected = np.zeros_like(streams), np.zeros_like(streams)
    for row, at in np.ndindex(2, 5):
        shares = (routed(streams[0, row, at]) @ params["prediction"]["kernel"]).reshape(3, 3)
        predicted[:, row, at] = streams[:, row, at] + shares @ streams[:, row, at]
        share = 1 + routed(computed[row, at]) @ params["correction"]["kernel"]
        error = computed[row, at] - predicted[0, row, at]
        corrected[:, row, at] = predicted[:, row, at] + share[:, None] * error
    run = lambda *args, method: altup.apply({"params": params}, *args, method=method)  # noqa: E731
    np.testing.assert_allclose(run(streams, method="predicted"), predicted, rtol=1e-4, atol=1e-5)
    got = run(predicted, computed, method="corrected")
    np.testing.assert_allclose(got, corrected, rtol=1e-4, atol=1e-4)


def test_streams_begin_and_end_as_large_as_the_first():
    x, kernels = drawn((2, 5, 22)), drawn((2, 22, 22))

    class Both(nn.Module):
        @nn.compact
        def __call__(self, x, streams):
            to, back = ([nn.Dense(22, use_bias=False) for _ in range(2)] for _ in range(2))
            return spread(x, to), gathered(streams, back)

    params = {f"Dense_{at}": {"kernel": kernels[at % 2]} for at in range(4)}
    streams = drawn((3, 2, 5, 22))
    begun, ended = Both().apply({"params": params}, x, streams)
    scaled = lambda x, to: x / rms(x) * rms(to)  # noqa: E731
    want = [x, *(scaled(x @ kernel, x) for kernel in kernels)]
    np.testing.assert_allclose(begun, np.stack(want), rtol=1e-4, atol=1e-5)
    others = [scaled(streams[at] @ kernels[at - 1], streams[0]) for at in (1, 2)]
    np.testing.assert_allclose(ended, sum([streams[0], *others]) / 3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_of_a_normal_gate_the_share_is_cut_off_and_the_rest_is_what_is_above(share):
    gate = 2 + 3 * drawn((2, 100_000))
    sparsity = jax.tree.map(lambda leaf: leaf[1], sparsity_of([0.5, share]))
    kept = np.asarray(largest(jnp.asarray(gate), sparsity))
    if share == 0:
        np.testing.assert_array_equal(kept, gate)
        return
    assert abs((kept == 0).mean() - share) < 0.01
    above = kept > 0
    limits = (gate - kept)[above]  # one for each row
    assert np.ptp(limits) < 0.1
    assert gate[above].min() > gate[~above].max() - 0.1


def test_a_gate_without_spread_has_a_finite_gradient():
    sparsity = jax.tree.map(lambda leaf: leaf[0], sparsity_of([0.9]))
    assert not jax.grad(lambda x: largest(x, sparsity).sum())(jnp.zeros((2, 5))).any()


def test_the_last_layers_read_the_last_one_before_them_that_sees_as_far():
    assert lenders(CONFIG) == {4: 2, 5: 3}
    assert keys_of(CONFIG) == ["own"] * 2 + ["lent"] * 2 + ["borrowed"] * 2
    far = config_of(
        "gemma3n_text", layer_types=["full_attention", *["sliding_attention"] * 4, "full_attention"]
    )
    assert lenders(far) == {4: 3, 5: 0}


def test_the_cache_has_no_room_for_keys_that_are_borrowed():
    shapes = jax.tree.map(jnp.shape, empty_cache(CONFIG, 3, 8, jnp.float32))
    one = (2, 3, 8, 2, 10)
    assert shapes == ((one, one), (one, one), ())


def test_tokens_behind_the_table_have_the_first_ones_vectors():
    module = InputsOfLayers(CONFIG, LayerInputs(vocabulary=31, width=8))
    tokens, embedded = jnp.array([[0, 36, 30]]), jnp.ones((1, 3, 22))
    first, behind, other = module.init_with_output(jax.random.key(0), tokens, embedded)[0][3, 0]
    np.testing.assert_array_equal(first, behind)
    assert not np.allclose(first, other)


def test_keys_of_layers_that_borrow_them_are_neither_read_nor_exported(tmp_path):
    rng, tensors = np.random.default_rng(1), {}
    shapes = models.expected_shapes(CONFIG)
    stored = models.Model(shapes, CONFIG, tokenizer=None, name="tiny").stored  # type: ignore
    for path, shape in shapes.items():
        span = path.split("/")[1].split("-") if path.startswith("layers/") else ["0", "0"]
        for layer in range(int(span[0]), int(span[1]) + 1):
            its = shape[1:] if path.startswith("layers/") else shape
            tensors |= models.to_stored(stored[path], layer, rng.normal(size=its).astype("f"))
    left = {f"model.layers.{at}.self_attn.{name}_proj.weight" for at in (4, 5) for name in "kv"}
    left |= {f"model.layers.{at}.self_attn.k_norm.weight" for at in (4, 5)}
    tensors |= {name: np.ones((3, 3), np.float32) for name in left}
    held = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(held, tmp_path / "model.safetensors")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
    words.save(str(tmp_path / "tokenizer.json"))
    settings = {**SETTINGS["gemma3n_text"], "model_type": "gemma3n_text", "eos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    out = models.export(tmp_path, tmp_path / "out")
    assert load_file(out / "model.safetensors").keys() == tensors.keys() - left
    tensors["model.layers.3.self_attn.v_norm.weight"] = np.ones(10, np.float32)
    save_file(
        {name: np.ascontiguousarray(each) for name, each in tensors.items()},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(ValueError, match=r"3\.self_attn\.v_norm\.weight is not expected"):
        models.load(tmp_path)

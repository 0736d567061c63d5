"""Stacks that are named by their layers: `layers/0-1` and `layers/2-4` are five layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora

KEY = jax.random.key(0)
STACKED = jlora.Axes(inputs=(1,), outputs=(2,), stack=(0,))
PARAMS = {
    "layers": {
        "0-1": {"up": jnp.ones((2, 7, 11))},
        "2-4": {"up": jnp.ones((3, 7, 11)), "down": jnp.ones((3, 11, 7))},
    }
}
PATHS = ("layers/0-1/up", "layers/2-4/up", "layers/2-4/down")
AXES = dict.fromkeys(PATHS, STACKED)


def ranks(params=PARAMS, axes=AXES, **options):
    """For each adapted leaf the rank of each of its layers."""
    config = jlora.LoraConfig(**{"targets": "layers", "rank": 3, **options})
    _, lora = jlora.split(params, config, KEY, axes=axes)
    return {
        path: [int((layer != 0).sum()) if node.scaling.ndim else node.rank for layer in scaling]
        for path, node in lora.items()
        for scaling in [np.broadcast_to(node.scaling.T, (node.rank, node.shape[0])).T]
    }


def test_layers_are_counted_across_the_stacks():
    assert ranks(layers=(1, 3)) == {
        "layers/0-1/up": [0, 3],
        "layers/2-4/up": [0, 3, 0],
        "layers/2-4/down": [0, 3, 0],
    }
    assert ranks(layers=(2,)).keys() == {"layers/2-4/up", "layers/2-4/down"}
    alphas = {"up": (1.0, 2.0, 3.0, 4.0, 5.0)}
    assert ranks(layers=(2,), targets="up", alpha_pattern=alphas).keys() == {"layers/2-4/up"}


def test_a_layer_behind_the_last_of_all_stacks_is_refused():
    with pytest.raises(ValueError, match="layers names 5, but the stacks end with layer 4"):
        ranks(layers=(1, 5))


def test_one_number_for_each_layer_of_the_model_is_cut_into_those_of_the_stacks():
    each = {"up": (1, 2, 0, 4, 5)}
    assert ranks(targets="up", rank_pattern=each) == {
        "layers/0-1/up": [1, 2],
        "layers/2-4/up": [0, 4, 5],
    }
    assert ranks(targets="2-4/up", rank_pattern={"up": (3, 1, 2)}) == {"layers/2-4/up": [3, 1, 2]}
    assert ranks(targets="up", rank_pattern={"up": (0, 0, 1, 1, 1)}) == {"layers/2-4/up": [1] * 3}


def test_layers_of_stacks_that_take_turns_are_counted_by_their_step():
    params = {"0-4-2": {"up": jnp.ones((3, 7, 11))}, "1-5-2": {"up": jnp.ones((3, 7, 11))}}
    axes = {"0-4-2/up": STACKED, "1-5-2/up": STACKED}
    assert ranks(params, axes, targets="up", layers=(2, 3, 5)) == {
        "0-4-2/up": [0, 3, 0],
        "1-5-2/up": [0, 3, 3],
    }
    each = {"up": (1, 2, 3, 4, 5, 6)}
    assert ranks(params, axes, targets="up", rank_pattern=each) == {
        "0-4-2/up": [1, 3, 5],
        "1-5-2/up": [2, 4, 6],
    }


def test_alphas_are_cut_alike():
    config = jlora.LoraConfig(targets="up", rank=2, alpha_pattern={"up": (1.0, 2.0, 3.0, 4.0, 5.0)})
    _, lora = jlora.split(PARAMS, config, KEY, axes=AXES)
    np.testing.assert_allclose(lora["layers/0-1/up"].scaling[:, 0], [0.5, 1.0])
    np.testing.assert_allclose(lora["layers/2-4/up"].scaling[:, 0], [1.5, 2.0, 2.5])


def test_a_list_that_ends_before_the_stack_is_refused():
    with pytest.raises(ValueError, match=r"layers/2-4/up has 3 layers .* names 4 ranks"):
        ranks(targets="up", rank_pattern={"up": (1, 2, 3, 4)})


def test_a_name_that_says_another_number_of_layers_is_a_name_like_any_other():
    params = {"2-9": {"up": jnp.ones((3, 7, 11))}}
    axes = {"2-9/up": STACKED}
    assert ranks(params, axes, targets="up", layers=(0, 2)) == {"2-9/up": [3, 0, 3]}
    with pytest.raises(ValueError, match="has the layers 0 to 2, but layers names 3"):
        ranks(params, axes, targets="up", layers=(3,))


def test_names_in_torch_count_on_from_stack_to_stack(tmp_path):
    config = jlora.LoraConfig(targets="up", rank=2, alpha=6)
    _, lora = jlora.split(PARAMS, config, KEY, axes=AXES)
    names = {path: f"model.layers.{{}}.{path.rpartition('/')[2]}" for path in PATHS}
    written = tmp_path / "adapter"
    jlora.peft.save(written, lora, config, PARAMS, names=names, axes=AXES)
    from safetensors.numpy import load_file

    tensors = load_file(written / "adapter_model.safetensors")
    for layer in range(5):
        path, at = ("layers/0-1/up", layer) if layer < 2 else ("layers/2-4/up", layer - 2)
        found = tensors[f"base_model.model.model.layers.{layer}.up.lora_A.weight"]
        np.testing.assert_array_equal(found, lora[path].a[at].T)
    again, _ = jlora.peft.load(written, PARAMS, names=names, axes=AXES)
    for path, node in lora.items():
        np.testing.assert_array_equal(again[path].a, node.a)

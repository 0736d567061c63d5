"""Adapters combined: PEFT's add_weighted_adapter, tensor for tensor."""

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from test_peft_methods import Net, assert_near, params_of

import jlora

LEAVES = ("embed", "up", "down")


def of_peft(net, name):
    """The adapter of this name in jlora."""
    lora = {}
    for leaf in LEAVES:
        layer = getattr(net, leaf)
        factors = layer.lora_embedding_A, layer.lora_embedding_B
        if name in layer.lora_A:
            factors = [{name: each[name].weight} for each in (layer.lora_A, layer.lora_B)]
        if name in factors[0]:
            a, b = (jnp.asarray(each[name].detach().numpy().T.copy()) for each in factors)
            axes = jlora.Axes(inputs=(0,), outputs=(1,))
            lora[f"{leaf}/kernel"] = jlora.LoraWeight(a, b, jnp.float32(layer.scaling[name]), axes)
    return lora


@pytest.fixture
def combined():
    """(the network of PEFT's, jlora's adapters) of three adapters, not all of the same leaves."""

    def make(ranks):
        torch.manual_seed(1)
        net = Net()
        configs = {
            "one": peft.LoraConfig(r=ranks[0], lora_alpha=6, target_modules=["up", "down"]),
            "two": peft.LoraConfig(
                r=ranks[1], lora_alpha=3, target_modules=["embed", "up"], use_rslora=True
            ),
            "three": peft.LoraConfig(r=ranks[2], lora_alpha=9, target_modules=["down", "up"]),
        }
        model = peft.get_peft_model(net, configs["one"], adapter_name="one")
        for name in ("two", "three"):
            model.add_adapter(name, configs[name])
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.data = torch.randn_like(value) * 0.3
        return model, net, [of_peft(net, name) for name in configs]

    return make


@pytest.mark.parametrize(
    ("method", "ranks"), [("cat", (2, 5, 3)), ("cat", (4, 4, 4)), ("linear", (4, 4, 4))]
)
@pytest.mark.parametrize("weights", [(0.5, 1.0, 2.0), (1.0, -0.75, 0.3)])
def test_three_adapters(combined, method, ranks, weights):
    model, net, adapters = combined(ranks)
    params = params_of(net)
    names = ["one", "two", "three"]
    model.add_weighted_adapter(names, list(weights), "all", combination_type=method)
    ours, theirs = jlora.combine(adapters, weights, method=method), of_peft(net, "all")
    assert ours.keys() == theirs.keys()
    for path, node in ours.items():
        want = theirs[path]  # PEFT fills up with zeros where adapters leave a leaf out
        assert not np.any(want.a[:, node.rank :])
        assert float(want.scaling) == float(node.scaling) == 1
        assert_near(node.a, want.a[:, : node.rank])
        assert_near(node.b, want.b[: node.rank])
    merged = jlora.merge(params, ours)
    model.set_adapter("all")
    model.merge_and_unload()
    for leaf, value in params_of(net).items():
        assert_near(merged[leaf]["kernel"], value["kernel"])


@pytest.mark.parametrize("method", ["cat", "linear"])
def test_one_adapter_alone_is_linear_there_too(combined, method):
    model, net, adapters = combined((4, 4, 4))
    model.add_weighted_adapter(["two"], [-0.6], "all", combination_type=method)
    ours, theirs = jlora.combine(adapters[1:2], [-0.6], method=method), of_peft(net, "all")
    for path, node in ours.items():
        assert_near(node.a, theirs[path].a)
        assert_near(node.b, theirs[path].b)

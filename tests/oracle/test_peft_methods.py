"""Every method that PEFT has, against PEFT: outputs, gradients, merged weights and starts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

import jlora

WIDTH, HIDDEN, OUT, TOKENS, ROWS, RANK = 14, 22, 10, 34, 6, 4


class Net(torch.nn.Module):
    """An embedding, two layers and a head."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(TOKENS, WIDTH)
        self.up = torch.nn.Linear(WIDTH, HIDDEN)
        self.down = torch.nn.Linear(HIDDEN, OUT)

    def forward(self, tokens):
        return self.down(torch.nn.functional.gelu(self.up(self.embed(tokens))))


def fn(params, tokens):
    """The same in JAX, kernels as (in, out)."""
    x = params["embed"]["kernel"][tokens]
    x = jax.nn.gelu(x @ params["up"]["kernel"] + params["up"]["bias"], approximate=False)
    return x @ params["down"]["kernel"] + params["down"]["bias"]


TOKEN_IDS = np.random.default_rng(0).integers(0, TOKENS, (3, 5))


def params_of(net):
    """The weights of a torch network (PEFT's base layers where it has them)."""
    params = {}
    for name in ("embed", "up", "down"):
        layer = getattr(net, name)
        layer = getattr(layer, "base_layer", layer)
        weight = layer.weight.detach().numpy().copy()
        params[name] = {"kernel": jnp.asarray(weight if name == "embed" else weight.T)}
        if name != "embed":
            params[name]["bias"] = jnp.asarray(layer.bias.detach().numpy().copy())
    return params


def both(targets=("up", "down"), *, trained=True, **options):
    """(the PEFT model, jlora's frozen and lora with PEFT's own factors)."""
    torch.manual_seed(0)
    net = Net()
    in_peft = {
        "method": lambda value: ("use_dora", value == "dora"),
        "rslora": lambda value: ("use_rslora", value),
        "init": lambda value: ("init_lora_weights", value),
        "bias": lambda value: ("lora_bias", value == "lora"),
    }
    theirs = dict(
        in_peft[name](value) if name in in_peft else (name, value)
        for name, value in options.items()
    )
    original = params_of(net)
    model = peft.get_peft_model(
        net, peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=list(targets), **theirs)
    )
    if trained:
        for name, value in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn_like(value) * 0.3
                value.data = value.data + noise if "magnitude" in name else noise
    config = jlora.LoraConfig(
        targets="|".join(f"{name}/kernel" for name in targets), rank=RANK, alpha=6, **options
    )
    frozen, lora = jlora.split(original, config, jax.random.key(0))
    return net, frozen, {path: with_factors_of(net, path, node) for path, node in lora.items()}


def with_factors_of(net, path, node):
    layer = getattr(net, path.split("/")[0])
    if isinstance(node, jlora.BiasDelta):
        return dataclasses.replace(node, delta=jnp.asarray(layer.lora_B["default"].bias.detach()))
    embeds = "default" in layer.lora_embedding_A
    a = layer.lora_embedding_A["default"] if embeds else layer.lora_A["default"].weight
    b = layer.lora_embedding_B["default"] if embeds else layer.lora_B["default"].weight
    node = dataclasses.replace(
        node, a=jnp.asarray(a.detach().numpy().T), b=jnp.asarray(b.detach().numpy().T)
    )
    if isinstance(node, jlora.DoraWeight):
        magnitude = layer.lora_magnitude_vector["default"].weight
        node = dataclasses.replace(
            node, magnitude=jnp.asarray(magnitude.detach().numpy()).reshape(-1)
        )
    return node


def assert_near(got, want):
    np.testing.assert_allclose(got, want, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (("up", "down"), {}),
        (("up", "down"), {"rslora": True}),
        (("up", "down"), {"rank_pattern": {"up": 2}, "alpha_pattern": {"down": 9}}),
        (("up", "down"), {"method": "dora"}),
        (("up", "down"), {"method": "dora", "rslora": True}),
        (("embed", "up"), {}),
        (("embed",), {"method": "dora"}),
        (("up", "down"), {"bias": "lora"}),
        (("up", "down"), {"bias": "lora", "rslora": True, "rank_pattern": {"up": 2}}),
    ],
)
def test_outputs_gradients_and_merged_weights(targets, options):
    net, frozen, lora = both(targets, **options)
    weights = np.cos(np.arange(3 * 5 * OUT)).reshape(3, 5, OUT).astype("float32")
    theirs = net(torch.tensor(TOKEN_IDS))
    (theirs * torch.tensor(weights)).sum().backward()
    ours, pull = jax.vjp(lambda lora: jlora.lift(fn, strict=True)(frozen, lora, TOKEN_IDS), lora)
    assert_near(ours, theirs.detach().numpy())
    [grads] = pull(jnp.asarray(weights))
    for path, node in grads.items():
        layer = getattr(net, path.split("/")[0])
        if isinstance(node, jlora.BiasDelta):
            assert_near(node.delta, layer.lora_B["default"].bias.grad.numpy())
            continue
        embeds = "default" in layer.lora_embedding_A
        a = layer.lora_embedding_A["default"] if embeds else layer.lora_A["default"].weight
        b = layer.lora_embedding_B["default"] if embeds else layer.lora_B["default"].weight
        assert_near(node.a, a.grad.numpy().T)
        assert_near(node.b, b.grad.numpy().T)
        if isinstance(node, jlora.DoraWeight):
            magnitude = layer.lora_magnitude_vector["default"].weight
            assert_near(node.magnitude, magnitude.grad.numpy().reshape(-1))
    merged = jlora.merge(frozen, lora)
    for name in targets:
        layer = getattr(net, name)
        layer.merge()
        want = layer.base_layer.weight.detach().numpy()
        if name != "embed":
            assert_near(merged[name]["bias"], layer.base_layer.bias.detach().numpy())
        assert_near(merged[name]["kernel"], want if name == "embed" else want.T)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_starts_from_the_weight(init, rslora):
    net, frozen, theirs = both(init=init, rslora=rslora, trained=False)
    config = jlora.LoraConfig(
        targets="up/kernel|down/kernel", rank=RANK, alpha=6, init=init, rslora=rslora
    )
    _, ours = jlora.split(params_of_original(), config, jax.random.key(1))
    for path, node in ours.items():
        signs = np.sign(np.sum(np.asarray(node.a * theirs[path].a), axis=0))
        assert_near(node.a * signs, theirs[path].a)
        assert_near(node.b * signs[:, None], theirs[path].b)
    assert_near(fn(params_of_original(), TOKEN_IDS), net(torch.tensor(TOKEN_IDS)).detach().numpy())
    for name in ("up", "down"):
        assert_near(frozen[name]["kernel"], params_of(net)[name]["kernel"])


def params_of_original():
    torch.manual_seed(0)
    return params_of(Net())


def test_the_orthogonal_start_from_the_same_random_numbers(monkeypatch):
    drawn = []
    randn = torch.randn

    def recorded(*shape, **options):
        drawn.append(randn(*shape, **options))
        return drawn[-1]

    torch.manual_seed(0)
    net = Net()
    config = peft.LoraConfig(
        r=RANK, lora_alpha=6, target_modules=["up"], init_lora_weights="orthogonal"
    )
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", recorded)
        peft.get_peft_model(net, config)
    replayed = iter(drawn)

    def normal(key, shape, dtype):
        value = next(replayed).numpy()
        assert value.shape == tuple(shape)
        return jnp.asarray(value, dtype)

    monkeypatch.setattr(jax.random, "normal", normal)
    ours = jlora.LoraConfig(targets="up/kernel", rank=RANK, alpha=6, init="orthogonal")
    _, lora = jlora.split(params_of(net), ours, jax.random.key(0))
    node = lora["up/kernel"]
    # q is unique up to the signs of its columns, which A and B share
    theirs = with_factors_of(net, "up/kernel", node)
    signs = np.sign(np.sum(np.asarray(node.a * theirs.a), axis=0))
    assert_near(node.a * signs, theirs.a)
    assert_near(node.b * signs[:, None], theirs.b)

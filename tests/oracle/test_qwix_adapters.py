"""The page for users of qwix: its code makes an adapter of the same outputs of what qwix holds."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import qwix
from flax import nnx, traverse_util

import jlora

# qwix 0.1.8 calls what Flax 0.12 gives up
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PAGE = Path(__file__).parents[2] / "docs/migrating/qwix.md"


class Attention(nn.Module):
    """A layer whose weights have three dimensions, between two that have two."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(12, name="up")(x)
        x = x + nn.MultiHeadDotProductAttention(3, name="attn")(x)
        return nn.Dense(5, name="down")(x)


@pytest.fixture(scope="module")
def from_qwix():
    text = PAGE.read_text(encoding="utf-8")
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)), names)
    return names["from_qwix"]


def trained(tree):
    """The tree as if B had been trained."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    keys = iter(jax.random.split(jax.random.key(7), len(flat)))
    flat = {
        path: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape) if "lora_b" in path else leaf
        for path, leaf in flat.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def test_a_linen_model_gives_what_it_gave_in_qwix(from_qwix):
    model, x = Attention(), jax.random.normal(jax.random.key(0), (2, 11, 7))
    names = "up|down|attn/(query|key|value|out)"
    rule = qwix.LoraRule(module_path=names, rank=2, alpha=4.0)
    theirs = qwix.apply_lora_to_model(model, qwix.LoraProvider([rule]))
    variables = trained(theirs.init(jax.random.key(1), x)["params"])

    def apply(params, x):
        return model.apply({"params": params}, x)

    config = jlora.LoraConfig(targets=f"({names})/kernel", rank=2, alpha=4)
    plain = model.init(jax.random.key(1), x)["params"]
    frozen, lora = from_qwix(variables, config, jlora.trace_axes(apply, plain, x))
    assert len(lora) == 6
    expected = theirs.apply({"params": variables}, x)
    assert jnp.allclose(jlora.lift(apply)(frozen, lora, x), expected, atol=1e-5)
    assert not jnp.allclose(apply(frozen, x), expected, atol=1e-2)


def test_an_nnx_model_gives_what_it_gave_in_qwix(from_qwix):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(7, 13, rngs=rngs)
            self.down = nnx.Linear(13, 5, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    x = jax.random.normal(jax.random.key(0), (11, 7))
    rule = qwix.LoraRule(module_path="up|down", rank=2, alpha=4.0)
    theirs = qwix.apply_lora_to_model(
        Model(nnx.Rngs(0)), qwix.LoraProvider([rule]), x, rngs=nnx.Rngs(1)
    )
    variables = trained(nnx.to_pure_dict(nnx.state(theirs, nnx.Param)))
    nnx.update(theirs, nnx.State(variables))
    frozen, lora = from_qwix(variables, jlora.LoraConfig(targets="kernel", rank=2, alpha=4))
    graph, _, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    apply = jlora.lift(lambda params, x: nnx.merge(graph, params, rest)(x))
    assert jnp.allclose(apply(nnx.State(frozen), lora, x), theirs(x), atol=1e-5)
    assert not jnp.allclose(nnx.merge(graph, nnx.State(frozen), rest)(x), theirs(x), atol=1e-2)

"""Law 1 for weights of any axes, split along any axes of any kind of mesh."""

import os

import jax
import jax.numpy as jnp
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from laws import adapted, assert_close
from on_meshes import MESHES, devices, graded, normal

import jlora

EXAMPLES = int(os.environ.get("JLORA_EXAMPLES", "40"))


@st.composite
def uses(draw):
    """A product of a split weight on a mesh: names, sizes, roles, and where each dimension lies."""
    on = devices(draw(st.sampled_from(list(MESHES))))
    count = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    names = iter("abcdefgh")
    stack = [next(names) for _ in range(count(0, 1))]
    inputs = [next(names) for _ in range(count(1, 2))]
    outputs = [next(names) for _ in range(count(1, 2))]
    batch = [next(names) for _ in range(count(1, 2))]
    sizes = {name: draw(st.sampled_from((8, 16))) for name in (*stack, *inputs, *outputs, *batch)}
    w = draw(st.permutations([*stack, *inputs, *outputs]))
    backwards = draw(st.booleans())
    x = [*stack, *batch, *(outputs if backwards else inputs)]
    out = [*stack, *batch, *(inputs if backwards else outputs)]

    def layout(labels):
        places = dict.fromkeys(labels)
        for axis in on.mesh.axis_names:
            if at := draw(st.sampled_from([None, *labels])):
                places[at] = (*(places[at] or ()), axis)
        return tuple(places.values())

    axes = jlora.Axes(*(tuple(sorted(map(w.index, each))) for each in (inputs, outputs, stack)))
    method = draw(st.sampled_from(("lora", "lora", "dora")))
    placed = draw(st.sampled_from(("where split left it", "as its weights")))
    return on, sizes, (x, w, out), (layout(x), layout(w), layout(out)), axes, method, placed


@given(uses())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="JLORA_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_a_lifted_product_on_a_mesh_is_the_merged_one_on_one_device(use):
    on, sizes, labels, layouts, axes, method, placed = use
    x, w = (normal(*(sizes[each] for each in names), seed=3) for names in labels[:2])
    formula = "{},{}->{}".format(*map("".join, labels))
    frozen, lora = adapted({"w": w}, {"w": axes}, rank=2, method=method)

    def merged(frozen, lora, x):
        return jnp.einsum(formula, x, jlora.merge(frozen, lora)["w"])

    want = jax.jit(graded(merged))(frozen, lora, x)
    alone = jlora.merge(frozen, lora)
    put = lambda array, layout: jax.device_put(  # noqa: E731
        array, NamedSharding(on.mesh, P(*layout))
    )
    x, frozen = put(x, layouts[0]), {"w": put(w, layouts[1])}

    def model(params, x):
        return jnp.einsum(formula, x, params["w"], out_sharding=on.told(*layouts[2]))

    with jax.set_mesh(on.mesh):
        try:
            jax.jit(jax.grad(lambda params: (model(params, x) ** 2).sum()))(frozen)
        except Exception:
            reject()  # JAX itself has no such product on this mesh
        if placed == "as its weights":
            lora = jax.device_put(lora, jlora.shardings(frozen, lora))
        got = jax.jit(graded(jlora.lift(model, strict=True)))(frozen, lora, x)
        again = jlora.merge(frozen, lora)
    assert_close(got, want, 1e-4)
    assert_close(again["w"], alone["w"])
    assert again["w"].sharding.is_equivalent_to(frozen["w"].sharding, w.ndim)

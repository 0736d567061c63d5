"""Law 1 for weights of any axes, split along any axes of any kind of mesh."""

import jax
import jax.numpy as jnp
from drawn import products, some
from hypothesis import given, reject
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from laws import adapted, assert_close
from on_meshes import MESHES, devices, graded, normal

import jlora


@st.composite
def uses(draw):
    """A product of a split weight on a mesh, and where each dimension of its arrays lies."""
    on = devices(draw(st.sampled_from(list(MESHES))))
    labels = draw(products(sizes=(8, 16), batch_sizes=(8, 16), fewest_batch=1))

    def layout(labels):
        places = dict.fromkeys(labels)
        for axis in on.mesh.axis_names:
            if at := draw(st.sampled_from([None, *labels])):
                places[at] = (*(places[at] or ()), axis)
        return tuple(places.values())

    method = draw(st.sampled_from(("lora", "lora", "dora")))
    placed = draw(st.sampled_from(("where split left it", "as its weights")))
    return on, labels, [layout(each) for each in labels[:3]], method, placed


@given(uses())
@some(40)
def test_a_lifted_product_on_a_mesh_is_the_merged_one_on_one_device(use):
    on, labels, layouts, method, placed = use
    axes = {"w": labels.axes}
    x, w = (normal(*(labels.sizes[each] for each in names), seed=3) for names in labels[:2])
    frozen, lora = adapted({"w": w}, axes, rank=2, method=method)

    def merged(frozen, lora, x):
        return jnp.einsum(labels.formula, x, jlora.merge(frozen, lora)["w"])

    want = jax.jit(graded(merged))(frozen, lora, x)
    alone = jlora.merge(frozen, lora)
    put = lambda array, layout: jax.device_put(  # noqa: E731
        array, NamedSharding(on.mesh, P(*layout))
    )
    x, frozen = put(x, layouts[0]), {"w": put(w, layouts[1])}

    def model(params, x):
        return jnp.einsum(labels.formula, x, params["w"], out_sharding=on.told(*layouts[2]))

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

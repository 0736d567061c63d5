"""A small base, and one of which a value is another, in one process or laid out over two."""

import jax
import jax.numpy as jnp
import numpy as np

import jlora

# how each leaf lies on ("data", "model"), of which "data" are the processes
LAYOUTS = {
    "cut": (("data", "model"),),
    "copied": (),
    "both": (None, "model"),
    "small": (None, ("data", "model")),  # of its rows of blocks
}


def bases(mesh=None):
    """The two, on a mesh of several processes if one is given."""
    start = np.random.default_rng(3)
    stack = {"small": jnp.asarray(start.normal(size=(3, 64, 24)), jnp.float32)}
    axes = {"small": jlora.Axes((1,), (2,), (0,))}
    base = {
        "cut": start.normal(size=(48, 7)).astype("f"),
        "copied": start.normal(size=(5, 3)).astype("f"),
        "both": start.normal(size=(9, 20)).astype("f"),
        **jlora.quantize(stack, "Q8_0", targets="small", axes=axes),
    }
    other = base["cut"].copy()
    other[13, 2] += 0.5  # none of those that are sampled
    both = base, base | {"cut": other}
    if mesh is None:
        return both
    return [{name: laid_out(each[name], mesh, LAYOUTS[name]) for name in each} for each in both]


def laid_out(leaf, mesh, axes):
    """A leaf on the mesh; each process has the whole of it to begin with."""
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    def placed(array):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, where, lambda at: array[at])

    return jax.tree.map(placed, leaf)

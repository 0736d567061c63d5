"""Loads a model onto a mesh, held to the laws of loading; by itself, one of two processes."""

import dataclasses
import json
import math
import sys
import tracemalloc
import warnings

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jlora import models
from jlora._quantised import QuantizedWeight, place_of, places_of
from jlora.models._files import _boxes, _small_leaves, _source, _stacking, _tensor

LAYOUTS = ("columns", "rows", "stacks")


def opened(path):
    return _source.opened(_source.located(path))


def spec(shape, layout, axes):
    """For each axis of the mesh the first dimension that it divides, in the order of the layout."""
    order = {
        "columns": range(len(shape))[::-1],
        "rows": sorted(range(len(shape)), key=lambda at: (at - len(shape) + 2) % len(shape)),
        "stacks": range(len(shape)),
    }[layout]
    names = {at: [] for at in order}
    left = dict(enumerate(shape))
    for axis, size in axes.items():
        for at in order:
            if left[at] % size == 0 and (layout == "stacks" or not names[at]):
                names[at].append(axis)
                left[at] //= size
                break
    return P(*(tuple(names[at]) or None for at in range(len(shape))))


def shardings(config, mesh, layout):
    return {
        path: NamedSharding(mesh, spec(shape, layout, dict(mesh.shape)))
        for path, shape in _stacking.expected_shapes(config).items()
    }


@dataclasses.dataclass
class Reads:
    """How often each number of what stands in files was read, by file and place in it."""

    times: dict = dataclasses.field(default_factory=dict)
    bytes: int = 0

    def __enter__(self):
        self._original = _tensor.read_box

        def read_box(file, start, shape, dtype, box):
            times = self.times.setdefault((file, start), np.zeros(shape, np.int8))
            times[_boxes.index(box)] += 1
            self.bytes += math.prod(_boxes.shape(box)) * dtype.itemsize
            return self._original(file, start, shape, dtype, box)

        _tensor.read_box = read_box
        return self

    def __exit__(self, *error):
        _tensor.read_box = self._original

    @property
    def most(self):
        return max(int(each.max()) for each in self.times.values())


def held_bytes(params):
    """Of the slices that this process holds; devices that hold the same one count once."""
    return sum(
        sum({str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards}.values())
        for leaf in jax.tree.leaves(params)
    )


def check(path, mesh, *layouts, dtype="float32"):
    """The parameters on the mesh are those of a plain load, and no byte was read twice."""
    model = opened(path)
    plain = flatten_dict(_stacking.assemble(model, dtype), sep="/")
    for layout in layouts:
        where = shardings(model.config, mesh, layout)
        with Reads() as reads:
            params = _stacking.assemble(model, dtype, where)
        assert reads.most == 1, f"{path}: bytes were read {reads.most} times"
        found = flatten_dict(params, sep="/")
        assert found.keys() == plain.keys()
        for name, leaf in found.items():
            assert (leaf.shape, leaf.dtype) == (plain[name].shape, plain[name].dtype), name
            assert leaf.sharding == where[name], name
            whole = np.asarray(plain[name])
            for shard in leaf.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index], name)


def shardings_of_stored(model, mesh, layout):
    """The same, but whole where a leaf's blocks would be cut."""
    found = shardings(model.config, mesh, layout)
    shapes = _stacking.expected_shapes(model.config)
    small = _small_leaves.small_shapes(model, "stored", "float32")
    for path, place in found.items():
        if (leaf := small(path, shapes[path])) is not None:
            try:
                places_of(leaf, place)
            except ValueError:
                found[path] = NamedSharding(mesh, P())
    return found


def check_stored(path, mesh, *layouts):
    """What stays as it is stored is on the mesh what it is on one device; no byte is read twice."""
    model = opened(path)
    assert any(map(model.kept, model.shapes))
    small = _small_leaves.small_leaves(model, "stored", "float32")
    whole = _stacking.assemble(model, "float32", None, small)
    for layout in layouts:
        where = shardings_of_stored(model, mesh, layout)
        small = _small_leaves.small_leaves(model, "stored", "float32", where)
        with Reads() as reads:
            params = _stacking.assemble(model, "float32", where, small)
        assert reads.most == 1, f"{path}: bytes were read {reads.most} times"
        for name, leaf in flatten_dict(params, sep="/").items():
            if isinstance(leaf, QuantizedWeight):
                assert place_of(leaf).is_equivalent_to(where[name], len(leaf.shape)), name
        assert jax.tree.structure(params) == jax.tree.structure(whole)
        for on_mesh, on_one in zip(*map(jax.tree.leaves, (params, whole)), strict=True):
            for shard in on_mesh.addressable_shards:
                np.testing.assert_array_equal(shard.data, np.asarray(on_one)[shard.index])


def measured(path, mesh, layout, dtype, quantize=None):
    """Bytes: of the whole model, of what is held here, read from the file, at most on the host."""
    model = opened(path)
    where = shardings_of_stored(model, mesh, layout)
    small = _small_leaves.small_leaves(model, quantize, dtype, where)
    with Reads() as reads:
        _stacking.assemble(model, dtype, where, small)
    tracemalloc.start()
    try:
        params = _stacking.assemble(model, dtype, where, small)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    told = {"whole": whole, "held": held_bytes(params), "read": reads.bytes, "peak": peak}
    return {**told, "quantize": quantize}


def _as_one_of_two(address, number, *paths):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=int(number))
    assert (len(jax.local_devices()), jax.device_count()) == (4, 8)
    devices = np.array(jax.devices())
    meshes = {
        "across": jax.make_mesh((2, 4), ("data", "model"), devices=devices),
        "within": jax.sharding.Mesh(devices.reshape(2, 4).T, ("model", "data")),
    }
    large, large_int8, large_blocks, *others = paths
    for path in (large, *others):
        check(path, meshes["across"], "columns", "rows")
    for path in others:
        check(path, meshes["within"], "columns", "stacks")
    for path in (large_int8, *others):
        if any(map((its := opened(path)).kept, its.shapes)):
            check_stored(path, meshes["across"], "columns", "rows")
            check_stored(path, meshes["within"], "columns", "stacks")
    for mesh in meshes.values():
        for layout in ("rows", "stacks"):
            print(json.dumps(measured(large, mesh, layout, "bfloat16")))
            for path in (large_int8, large_blocks):
                print(json.dumps(measured(path, mesh, layout, "float32", "stored")))
    warnings.filterwarnings("ignore", ".*weights are plain")
    for quantize in ("stored", "int8"):
        model = models.load(large_int8, quantize=quantize, mesh=meshes["across"])
        tokens = jax.device_put(np.ones((2, 3), int), model.layout.rows)
        assert jax.jit(model.apply)(model.params, tokens).shape == (2, 3, 1000)


if __name__ == "__main__":
    _as_one_of_two(*sys.argv[1:])

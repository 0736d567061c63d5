"""Of every family: the file of an adapter adds to that of its base what the adapter adds here.

The sum is made of both files by their own names and shapes, as llama.cpp multiplies them.
"""

import re

import gguf
import gguf_toys
import jax
import numpy as np
import pytest

import jlora
from jlora import models, peft

# Nothing of it is in llama.cpp's adapters.
LEFT_OUT = {
    "deepseek_v2": "attn/(q|q_a|q_b|kv_a|kv_b)_proj|head",
    "deepseek_v3": "attn/(q|q_a|q_b|kv_a|kv_b)_proj|head",
    "gemma3n_text": "stream|layer_inputs|altup/router",
    "glm4": "(attn/o|mlp/down)_proj",
    "gpt2": "positions",
}


def everything(model, family):
    """An adapter of all that a file can hold; some of it of another rank."""
    out = f"{LEFT_OUT.get(family, '^$')}{'|embed/embedding' if model.config.tied else ''}"
    matrices = [p for p in gguf_toys.flat(model.params) if p.endswith(("kernel", "embedding"))]
    kept = [path for path in matrices if not re.search(out, path)]
    ranks = {"shared_gate": 1, "(down|o)_proj": 2}
    found = {n: rank for n, rank in ranks.items() if any(re.search(n, path) for path in kept)}
    targets = tuple(f"^{path}$" for path in kept)
    return gguf_toys.adapter(model, targets, rank_pattern=found)


def summed(base, adapter, out):
    """The base's file with each pair of the adapter's added to the tensor that it names."""
    added = gguf.GGUFReader(adapter)
    pairs = {tensor.name: np.array(tensor.data) for tensor in added.tensors}
    alpha = added.fields["adapter.lora.alpha"].contents()
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        array = np.array(tensor.data)
        a = pairs.pop(f"{tensor.name}.lora_a", None)
        if a is not None:
            b = pairs.pop(f"{tensor.name}.lora_b")
            scale = alpha / b.shape[-1] if alpha else 1.0
            turned = tensor.name == "token_embd.weight"
            delta = a @ b.T if turned else b @ a
            array = array + np.float32(scale) * delta.reshape(array.shape)
        writer.add_tensor(tensor.name, array)
    assert not pairs
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize("family", gguf_toys.FAMILIES_OF_GGUF)
def test_base_and_adapter_in_files_are_the_merged_model(family, tmp_path):
    base = gguf_toys.write(tmp_path / "base.gguf", family)
    model = models.load(base)
    lora, config = everything(model, family)
    file = tmp_path / "adapter.gguf"
    peft.publish(file, lora, config, model, format="gguf-lora")
    want = jlora.merge(model.params, lora)
    got = models.load(summed(base, file, tmp_path / "summed.gguf")).params
    near = {"rtol": 1e-4, "atol": 1e-5}
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, **near), got, want)
    again, _ = peft.load(file, model)
    jax.tree.map(np.testing.assert_array_equal, jlora.merge(model.params, again), want)

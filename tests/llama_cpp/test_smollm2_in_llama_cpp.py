"""SmolLM2 with an adapter in llama.cpp: its greedy answers are those of this library.

llama.cpp rounds activations to 8 bits where weights are packed. So the whole answers are compared
on a copy in 32 bits, and on the file itself what the rounding allows.
"""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llama_cpp import asked

import jlora
from jlora import finetune, models, peft

MOST = 24  # tokens of an answer
FEW = 8  # of the prompts: the probabilities of a whole vocabulary take time


def in_32_bits(path, out):
    """A copy with every tensor decoded and every entry of the header as it is."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, array.reshape(tensor.shape[::-1]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture(scope="module")
def model():
    return models.load("smollm2")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return in_32_bits(models.located("smollm2"), tmp_path_factory.mktemp("wide") / "wide.gguf")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """(the file, the merged parameters) of an adapter that changes answers and leaves them text."""
    config = jlora.LoraConfig(targets="_proj", rank=4, alpha=10)
    axes = jlora.trace_axes(model.apply, model.params, jnp.zeros((1, 4), int))
    _, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    rng = np.random.default_rng(0)
    for path, node in lora.items():
        b = jnp.asarray(rng.normal(0, 0.012, node.b.shape), node.b.dtype)
        lora[path] = node.__class__(a=node.a, b=b, scaling=node.scaling, axes=node.axes)
    file = tmp_path_factory.mktemp("adapter") / "adapter.gguf"
    peft.publish(file, lora, config, model, format="gguf-lora")
    return file, jlora.merge(model.params, lora)


@pytest.fixture(scope="module")
def prompts(model):
    """The tokens of 32 questions of the default task."""
    _, rows = jlora.tasks.HomeAssistant(finetune.Settings(train_rows=1, eval_rows=32)).rows()
    tokenizer = model.tokenizer
    texts = [tokenizer.render(row[:-1], add_generation_prompt=True) for row in rows]
    return [tokenizer.encode(text) for text in texts]


def answers(model, params, prompts):
    """The tokens of each greedy answer, the one that ends it included."""
    stops = model.tokenizer.stop_ids
    longest = max(map(len, prompts))
    tokens = np.array([[stops[0]] * (longest - len(each)) + each for each in prompts])
    starts = np.array([longest - len(each) for each in prompts])
    found = model.generate(params, tokens, starts, max_new_tokens=MOST).tolist()
    ends = (next((at for at, t in enumerate(row) if t in stops), MOST - 1) for row in found)
    return [row[: end + 1] for row, end in zip(found, ends, strict=True)]


def continued(prompts, said):
    """What asks for the token at each place of the answers, given what stands before it."""
    texts = [p + s[:-1] for p, s in zip(prompts, said, strict=True)]
    return {"texts": texts, "last": [len(each) for each in said]}


def test_greedy_answers_are_the_same_with_the_adapter_and_without(model, wide, adapter, prompts):
    file, merged = adapter
    plain, said = (answers(model, params, prompts) for params in (model.params, merged))
    stops = list(model.tokenizer.stop_ids)
    base, adapted = asked(
        {"model": wide, **continued(prompts, plain)},
        {
            "model": wide,
            "adapters": [str(file)],
            "prompts": prompts,
            "most": MOST,
            "stop": stops,
        },
    )
    assert base["next"] == plain
    assert adapted["answers"] == said
    changed = sum(one != other for one, other in zip(plain, said, strict=True))
    assert changed > len(prompts) // 4


def test_on_packed_weights_answers_part_only_where_llama_cpp_itself_is_unsure(
    model, wide, adapter, prompts
):
    file, merged = adapter
    packed, prompts = models.located("smollm2"), prompts[:FEW]
    said = answers(model, merged, prompts)
    job = continued(prompts, said)

    def scores(params, text, last):
        return jax.nn.log_softmax(model.apply(params, jnp.array([text]))[0][-last:])

    ours = [scores(merged, *each) for each in zip(job["texts"], job["last"], strict=True)]
    among = [np.argsort(each)[:, :-3:-1].tolist() for each in ours]
    adapted, in_wide, in_packed = asked(
        {"model": packed, "adapters": [str(file)], **job},
        *({"model": base, "among": among, **job} for base in (wide, packed)),
    )
    leads = [
        np.diff(np.log(np.concatenate([np.array(each) for each in found["next"]]))).squeeze()
        for found in (in_wide, in_packed)
    ]
    rounding = np.abs(leads[0] - leads[1]).max()  # in the lead of the best token, no adapter
    places = [
        (float(row[best] - row[theirs]))
        for each, row_said, row_theirs in zip(ours, said, adapted["next"], strict=True)
        for row, best, theirs in zip(each, row_said, row_theirs, strict=True)
    ]
    assert max(places) <= rounding
    assert np.mean(np.array(places) == 0) > 0.9

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import to_gguf
from merged_files import delta, packed_llama
from tiny import TEMPLATE

import jlora
from jlora import checkpoint, models
from jlora.__main__ import main


def saved(model, directory, *, size=0.001, **options):
    """A trained adapter of the model's queries, in a folder."""
    config = jlora.LoraConfig(**{"targets": "attn/q_proj", "rank": 3, **options})
    axes = jlora.trace_axes(model.apply, model.params, jnp.zeros((1, 4), int))
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    lora = jax.tree.map(lambda x: x + size * jnp.asarray(delta(x.shape, size=1.0)), lora)
    metadata = {"model": model.name, "dtype": "float32"}
    checkpoint.save(directory, lora, config, base=frozen, metadata=metadata)
    return lora


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(the base's file, the folder of an adapter)."""
    folder = tmp_path_factory.mktemp("packed")
    kinds = {"blk.1.attn_q.weight": "Q4_0", "blk.0.ffn_down.weight": "Q6_K"}
    base = packed_llama(folder / "base.gguf", kinds, every="Q4_1")
    saved(models.load(base), folder / "adapter")
    return base, folder / "adapter"


def run(capsys, *arguments, status=0):
    assert main(["merge", "--format", "gguf", *map(str, arguments)]) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_it_says_how_little_is_left_and_what_loses_nothing(packed, tmp_path, capsys):
    base, adapter = packed
    told = run(capsys, "--adapter", adapter, "--out", tmp_path / "tuned.gguf")
    merged = models.load(tmp_path / "tuned.gguf").params
    assert jax.tree.structure(merged) == jax.tree.structure(models.load(base).params)
    [kept] = re.findall(r"^q_proj +([\d.]+)$", told, re.M)
    assert re.search(rf"^all +{kept}$", told, re.M)
    assert float(kept) < 0.5
    assert "is in the file, which so nearly is its base" in told
    assert "--method qalora" in told
    finer = run(capsys, "--adapter", adapter, "--out", tmp_path / "f16.gguf", "--type", "F16")
    assert re.search(r"^all +(1.00|0.99)\d$", finer, re.M)
    assert "nearly" not in finer
    assert re.search(r"^loads +yes$", finer, re.M)


def test_what_was_trained_over_the_file_s_own_bytes_is_in_them_whole(tmp_path, capsys):
    base = packed_llama(tmp_path / "base.gguf", every="Q4_1")
    model = models.load(base, quantize="stored")
    lora = saved(model, tmp_path / "a", size=0.02, method="qalora", targets="_proj/kernel")
    told = run(capsys, "--adapter", tmp_path / "a", "--out", tmp_path / "tuned.gguf")
    assert re.search(r"^all +(1.0|0.9)\d\d$", told, re.M)
    assert "nearly" not in told
    want = jlora.merge(models.load(base).params, lora)
    got = models.load(tmp_path / "tuned.gguf").params
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-3), got, want)


def test_flags_of_the_other_format_are_one_error(packed, tmp_path, capsys):
    _, adapter = packed
    flags = ["--adapter", adapter, "--out", tmp_path / "out.gguf"]
    told = run(capsys, *flags, "--dtype", "float16", "--max-shard-size", "5GB", status=2)
    assert "--format gguf has no --dtype and no --max-shard-size" in told
    assert main(["merge", *map(str, flags), "--type", "F16"]) == 2
    assert "--format huggingface has no --type" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_types_that_nothing_writes_name_the_flag(packed, tmp_path, capsys):
    base, _ = packed
    saved(models.load(base), tmp_path / "a", targets="mlp/down_proj")
    told = run(capsys, "--adapter", tmp_path / "a", "--out", tmp_path / "t.gguf", status=2)
    assert "blk.0.ffn_down.weight is Q6_K, which can be read and not be written" in told
    assert "F32. Give one with --type" in told


def test_a_folder_is_no_base_of_a_gguf_file(tiny, tmp_path, capsys):
    saved(models.load(tiny), tmp_path / "a")
    told = run(capsys, "--adapter", tmp_path / "a", "--out", tmp_path / "t.gguf", status=2)
    assert "is no GGUF file: an adapter is merged into one where its base is one" in told


def test_the_losses_of_base_adapter_and_file_stand_beside_each_other(tiny, tmp_path, capsys):
    header = [("add_chat_template", TEMPLATE)]
    base = to_gguf(tiny, tmp_path / "base.gguf", header=header)
    model = models.load(base)
    lora = saved(model, tmp_path / "adapter", size=0.3)
    (tmp_path / "adapter" / "chat_template.jinja").write_text(TEMPLATE + " ")
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "a", "completion": "b c"}
    rows.write_text(f"{json.dumps(row)}\n" * 3)
    flags = ["--adapter", tmp_path / "adapter", "--out", tmp_path / "t.gguf"]
    told = run(capsys, *flags, "--eval-data", rows)
    base_loss, adapted, of_file = (
        float(re.search(rf"^{name} +([\d.]+)$", told, re.M)[1])
        for name in ("loss of the base", "with the adapter", "of the file")
    )
    assert adapted == of_file != base_loss
    user, assistant = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"})
    of = model.tokenizer
    before = len(of.encode(of.render([user], add_generation_prompt=True)))
    tokens = of.encode(of.render([user, assistant]))
    answer = range(before, before + len(of.encode("b c<|im_end|>")))
    scores = model.apply(jlora.merge(model.params, lora), jnp.array([tokens]))[0]
    wanted = -np.mean([jax.nn.log_softmax(scores[at - 1])[tokens[at]] for at in answer])
    assert adapted == pytest.approx(float(wanted), abs=2e-4)
    assert "has a chat template of its own; the file has its base's" in told

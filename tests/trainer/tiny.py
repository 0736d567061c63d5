"""A language model of a few thousand parameters, as a Hugging Face folder."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_llama(
    directory: Path, *, layers: int = 2, width: int = 24, seed: int = 0, tied: bool = True
) -> Path:
    """A random llama of odd dimensions as a Hugging Face folder, (nearly) one token a byte."""
    directory.mkdir(parents=True)
    heads, kv_heads, head, ffn = 3, 1, 8, 40
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *letters, "Ġa"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "chat_template": TEMPLATE,
                "bos_token": "<|im_start|>",
                "eos_token": "<|im_end|>",
                "add_bos_token": False,
            }
        )
    )
    (directory / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": width,
                "intermediate_size": ffn,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": kv_heads,
                "head_dim": head,
                "vocab_size": len(vocabulary),
                "max_position_embeddings": 256,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "tie_word_embeddings": tied,
                "hidden_act": "silu",
                "bos_token_id": 0,
                "eos_token_id": 1,
                "torch_dtype": "float32",
            }
        )
    )
    shapes = {"model.embed_tokens": (len(vocabulary), width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj": (heads * head, width),
            f"{prefix}.self_attn.k_proj": (kv_heads * head, width),
            f"{prefix}.self_attn.v_proj": (kv_heads * head, width),
            f"{prefix}.self_attn.o_proj": (width, heads * head),
            f"{prefix}.mlp.gate_proj": (ffn, width),
            f"{prefix}.mlp.up_proj": (ffn, width),
            f"{prefix}.mlp.down_proj": (width, ffn),
            f"{prefix}.input_layernorm": (width,),
            f"{prefix}.post_attention_layernorm": (width,),
        }
    shapes["model.norm"] = (width,)
    if not tied:
        shapes["lm_head"] = (len(vocabulary), width)
    rng = np.random.default_rng(seed)
    save_file(
        {
            f"{name}.weight": np.ones(shape, np.float32)
            if "norm" in name
            else rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
            for name, shape in shapes.items()
        },
        str(directory / "model.safetensors"),
    )
    return directory

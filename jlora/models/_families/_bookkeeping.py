"""Settings of a config.json that say nothing of what a decoder computes, whatever the family.

The names are those that transformers, and tools beside it, write; a family's own such settings
stand in its entry (`Family.settings_aside`).
"""

from __future__ import annotations

_ORIGIN = (
    "architectures",
    "model_type",
    "_name_or_path",
    "transformers_version",
    "transformers.js_config",
    "unsloth_version",
    "unsloth_fixed",
    "auto_map",
    "custom_pipelines",
    "license",
    "is_llama_config",
    "tokenizer_class",
    "task_specific_params",
    "finetuning_task",
    "problem_type",
    "id2label",
    "label2id",
    "num_labels",
)
# how it is run: dtypes, caches, kernels, what a call returns
_RUNNING = (
    "dtype",
    "torch_dtype",
    "use_bfloat16",
    "torchscript",
    "use_cache",
    "cache_implementation",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "use_flash_attn",
    "pretraining_tp",
    "chunk_size_feed_forward",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "reorder_and_upcast_attn",
)
_TRAINING = (
    "initializer_range",
    "initializer_factor",
    "init_std",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_pdrop",
    "residual_dropout",
    "gradient_checkpointing",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "aux_loss_alpha",
    "seq_aux",
)
# ids of special tokens: the tokenizer and what ends an answer are read elsewhere
_TOKENS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "eod_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
# how answers are drawn, which older releases wrote here
_GENERATION = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "diversity_penalty",
    "max_length",
    "min_length",
    "max_new_tokens",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "early_stopping",
    "suppress_tokens",
    "begin_suppress_tokens",
)
BOOKKEEPING = frozenset((*_ORIGIN, *_RUNNING, *_TRAINING, *_TOKENS, *_GENERATION))

"""Random models of every family's variants, in torch and in jlora."""

import copy
import functools
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
import tokenizers
import torch
import transformers
from variants import EAGER, SMALL, STARTS, VARIANTS

from jlora import models
from jlora.models._families import FAMILIES
from jlora.models._files._stacking import layers_of

TOKENS = np.random.default_rng(0).integers(3, 83, (2, 61))
PROMPTS = [list(range(5, 22)), [44, 9, 71], [17, 60, 61, 5, 5, 80, 12, 33, 8, 20, 31]]


def settings_of(variant):
    """(model type, what a user would write into config.json)."""
    family, changes = VARIANTS[variant]
    # of its own: transformers writes into the tables that it is given
    settings = copy.deepcopy({**STARTS.get(family, SMALL), **changes})
    if settings.get("head_dim", 1) is None:
        del settings["head_dim"]
    return family, settings


class Tower(transformers.PreTrainedModel):
    """In the place of Gemma 3n's vision tower, which is another library's."""

    config_class = transformers.models.gemma3n.Gemma3nVisionConfig

    def __init__(self, config):
        super().__init__(config)
        self.dense = torch.nn.Linear(3, config.hidden_size)
        self.post_init()


transformers.AutoModel.register(Tower.config_class, Tower, exist_ok=True)


# What Llama 4 with a vision tower reads of its text's output, which has none.
transformers.modeling_outputs.MoeCausalLMOutputWithPast.image_outputs = None


def class_of(config):
    """What makes a model with all of its parts; of llama4 the other class makes the text alone."""
    whole = config.model_type == "llama4"
    return transformers.AutoModelForImageTextToText if whole else transformers.AutoModelForCausalLM


def opened_by_transformers(folder, **options):
    """The model in a folder, with all of its parts."""
    config = transformers.AutoConfig.from_pretrained(folder)
    return class_of(config).from_pretrained(folder, **options)


def randomised(config):
    """A random model in torch."""
    torch.manual_seed(0)
    model = class_of(config).from_config(config, **EAGER)
    for parameter in model.parameters():  # norms and biases too: a one or zero would hide itself
        torch.nn.init.normal_(parameter, std=0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):
            torch.nn.init.normal_(buffer, std=0.2)
    return model.eval()


def of_the_decoder(family, names):
    """The names of tensors without those of parts that are left aside."""
    aside = FAMILIES[family].tensors_aside
    return {name for name in names if not name.removeprefix("model.").startswith(aside)}


@functools.cache
def both(variant):
    """(a random model in torch, the same in jlora, its folder)."""
    family, settings = settings_of(variant)
    oracle = randomised(transformers.AutoConfig.for_model(family, **settings))
    folder = Path(tempfile.mkdtemp())
    oracle.save_pretrained(folder)
    save_tokenizer(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*left aside, as no part of the decoder")
        return oracle, models.load(folder), folder


def save_tokenizer(folder):
    vocabulary = {f"t{k}": k for k in range(83)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.save(str(folder / "tokenizer.json"))


def logits_of(oracle):
    with torch.no_grad():
        return oracle(torch.tensor(TOKENS)).logits.numpy()


def assert_near(ours, theirs, share):
    assert np.abs(np.asarray(ours) - theirs).max() < share * theirs.std()


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def per_layer(path, leaf):
    """(layer, that layer's value) of a stacked leaf; (0, the leaf) of another."""
    values = leaf if path.startswith("layers/") else [leaf]
    return zip(layers_of(path, leaf.shape), values, strict=True)

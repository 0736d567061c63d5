"""The flags that several commands share: which model, which adapter, how to answer."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jlora._commands import _adapters
from jlora._peft_form import LowRank, Own
from jlora._sizes import sizes
from jlora._weighted import Weighted, weighted


class Adapted(NamedTuple):
    """A model that is ready to answer."""

    model: Any  # jlora.models.Model
    weights: tuple[Any, ...]  # (params,) with the adapter merged, or (frozen, lora)
    system: list[dict[str, str]]  # the system message to begin with, if there is one


def add_model(
    command: argparse.ArgumentParser,
    *,
    adapter_required: bool = False,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    dtype_of: str = "the adapter's own",
    with_dtype: bool = True,
) -> None:
    """--model, --adapter and --dtype."""
    command.add_argument(
        "--model",
        metavar="",
        help="smollm2, a .gguf file, a Hugging Face folder or hub id (the adapter's own)",
    )
    command.add_argument(
        "--adapter",
        action="append",
        type=weighted,
        default=[],
        metavar="",
        required=adapter_required,
        help="folder that jlora.checkpoint.save, PEFT or mlx-lm wrote, a .gguf file of llama.cpp "
        "or a hub id; several are summed, each times the number behind it: A=0.5",
    )
    if with_dtype:
        command.add_argument("--dtype", choices=dtypes, help=f"of the weights ({dtype_of})")


def add_quantize(command: argparse.ArgumentParser) -> None:
    """--quantize and --dequantize."""
    command.add_argument(
        "--quantize",
        choices=("none", "int8", "nf4", "stored"),
        help="of the weights, as train.py has it (as the adapter was trained)",
    )
    command.add_argument(
        "--dequantize",
        action="store_true",
        help="decode such weights once: faster answers, and the memory of plain ones",
    )


def add_mesh(command: argparse.ArgumentParser) -> None:
    """--mesh."""
    command.add_argument(
        "--mesh",
        type=axes,
        metavar="",
        help="axes of devices on which the model lies, such as data=1,model=4 (one device)",
    )


def add_answer(command: argparse.ArgumentParser) -> None:
    """--system, --max-new-tokens, --stop and how tokens are chosen."""
    command.add_argument(
        "--system", metavar="", help="system message (the one of the adapter's training)"
    )
    command.add_argument(
        "--max-new-tokens", type=positive, default=256, metavar="", help="longest answer (256)"
    )
    command.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="",
        help="text before which an answer ends, or a special token; may be given again",
    )
    command.add_argument(
        "--temperature", type=float, default=0.0, metavar="", help="of sampling; 0 is greedy (0)"
    )
    command.add_argument(
        "--top-k", type=int, default=0, metavar="", help="draw from so many tokens (0: all)"
    )
    command.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="",
        help="draw from the likeliest tokens of this probability in all (1: all)",
    )
    command.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="",
        help="draw from tokens at least this share as likely as the likeliest (0: all)",
    )
    command.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="",
        help="above 1 makes what was said before less likely (1)",
    )
    command.add_argument("--seed", type=int, default=0, metavar="", help="of sampling (0)")


def answer_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `add_answer` say, as `jlora.models.answer` and `stream` take it.

    Raises:
        ValueError: when a number is out of its range.
    """
    from jlora.models import Sampling

    names = [field.name for field in dataclasses.fields(Sampling)]
    return {
        "max_new_tokens": args.max_new_tokens,
        "stop": args.stop,
        "seed": args.seed,
        "sampling": Sampling(**{name: getattr(args, name) for name in names}),
    }


def load_model(args: argparse.Namespace) -> Adapted:
    """The model of the flags: source, dtype and system message are the adapter's, unless given.

    Raises:
        ValueError: when model or adapter are missing or do not fit each other; when the devices do
            not make the mesh.
    """
    directories = folders_of(args.adapter)
    source, known = source_and_training(args, directories)
    import jlora
    from jlora import compiled, models, peft
    from jlora._frozen_leaf import has_frozen_leaf
    from jlora.models._net import _kinds

    mesh = None if args.mesh is None else models.make_mesh(args.mesh)
    compiled.keep()
    trained = known.get("settings", {})  # with this template and on this day
    quantize = args.quantize or known.get("quantize", "none")
    model = models.load(
        source,
        dtype=args.dtype or known.get("dtype", "float32"),
        quantize=None if quantize == "none" else quantize,
        template=trained.get("template"),
        date=trained.get("date"),
        mesh=mesh,
    )
    _kinds.require_writer(model.config, model.name, "writes answers")
    if len(directories) == 1 and _is_peft(directories[0]):
        model = models.with_vocabulary(model, peft.vocabulary(directories[0], model))
    lora = {}
    if directories:
        loras = [_adapter(directory, model) for directory in directories]
        model = models.with_tokenizer(model, directories[0])
        lora = _adapters.combined(loras, args.adapter)
    params = jlora.dequantize(model.params) if args.dequantize else model.params
    weights = (params, lora) if has_frozen_leaf(params) else (jlora.merge(params, lora),)
    system = args.system if args.system is not None else known.get("system")
    return Adapted(model, weights, [{"role": "system", "content": system}] if system else [])


def folders_of(adapters: Sequence[Weighted]) -> list[Path]:
    """Their folders; what is on the hub is fetched.

    Raises:
        ValueError: when one is neither a folder nor on the hub, or its weight is no number.
    """
    from jlora import peft

    _adapters.check(adapters)
    return [peft.located(its.name) for its in adapters]


def source_and_training(
    args: argparse.Namespace, directories: Sequence[Path]
) -> tuple[str, dict[str, Any]]:
    """The model's name, and what the first adapter says of its training.

    Raises:
        ValueError: when nothing says which model, or the adapters name different ones.
    """
    each = [described(directory) for directory in directories]
    named = {known["model"]: None for known in each if known.get("model")}
    if not args.model and len(named) > 1:
        raise ValueError(
            f"the adapters were trained on {' and '.join(map(repr, named))}: name the model with "
            "--model where these are one"
        )
    known = each[0] if each else {}
    return source_of(args, {**known, "model": next(iter(named), None)}), known


def load_adapters(adapters: Sequence[Weighted], directories: Sequence[Path],
                  source: str) -> _adapters.Adapter:  # fmt: skip
    """The adapters in the folders as one, for the model of this name.

    Raises:
        ValueError: as `load_adapter`, or when they have no sum.
    """
    parts = [load_adapter(directory, source) for directory in directories]
    return _adapters.summed(parts, adapters)


def load_adapter(directory: Path, source: str) -> _adapters.Adapter:
    """The adapter in a folder, of either format, for the model of this name.

    Raises:
        ValueError: when there is none, it is damaged, or it does not fit the model.
    """
    from jlora import checkpoint, models, peft
    from jlora._safetensors import headers
    from jlora.models._families._labels import labels_trained, named

    if not _is_peft(directory):
        description = checkpoint.describe(directory)
        lora, config = checkpoint.restore(directory)
        metadata = description["metadata"]
        bases = () if description["base"] is None else (description["base"],)
        labels = tuple(metadata.get("labels", ()))
        if (count := labels_trained(lora)) and not labels:
            labels = named(count, models.outline(source).config)
        return _adapters.Adapter(lora, config, bases, metadata, models.Vocabulary(), labels)
    settings = peft.describe(directory)
    # the weights are read only where the adapter is made of them
    of_weights = settings["init_lora_weights"] in ("pissa", "olora")
    of_weights |= bool(settings["trainable_token_indices"])
    of_weights |= any(".lora_" not in name for name in headers(directory.glob("*.safetensors")))
    model = (models.load if of_weights else models.outline)(source)
    labels = peft.labels(directory, model)
    model = with_head(model, labels)
    vocabulary = peft.vocabulary(directory, model)
    lora, config = peft.load(directory, models.with_vocabulary(model, vocabulary))
    return _adapters.Adapter(lora, config, (), described(directory), vocabulary, labels)


def with_head(model: Any, labels: tuple[str, ...]) -> Any:
    """The model with a head for these labels, if it has none: what stands in it is the adapter's.

    Raises:
        ValueError: when its family has no such head.
    """
    import jax

    from jlora import models

    if not labels or labels == model.config.labels:
        return model
    return models.with_classifier(model, labels, jax.random.key(0))


def model_for(adapter: _adapters.Adapter, source: str) -> Any:
    """The model as the adapter's own: its shapes alone, where no weight has to be written.

    Raises:
        ValueError: when there is no such model.
    """
    from jlora import models

    forms = [node.peft_form() for node in adapter.lora.values()]
    of_shapes = all(isinstance(form, LowRank | Own) for form in forms)
    model = (models.outline if of_shapes else models.load)(source)
    return models.with_vocabulary(with_head(model, adapter.labels), adapter.vocabulary)


def described(directory: Path) -> dict[str, Any]:
    """What the adapter says of its training: model, dtype, system message.

    Raises:
        ValueError: when there is none, or it is damaged.
    """
    if _is_peft(directory):
        from jlora import peft

        settings = peft.describe(directory)
        base, revision = settings["base_model_name_or_path"], settings["revision"]
        return {"model": f"{base}@{revision}" if base and revision else base}
    from jlora import checkpoint

    return checkpoint.describe(directory)["metadata"]


def source_of(args: argparse.Namespace, known: Mapping[str, Any]) -> str:
    """--model, or the one that the adapter's metadata names.

    Raises:
        ValueError: when neither says, or the one that was named is no longer there.
    """
    from jlora import _hub, models

    source = args.model or known.get("model")
    if source is None:
        raise ValueError("--model is missing, and no adapter says which it was trained on")
    there = source == models.DEFAULT or _hub.is_id(source) or Path(source).expanduser().exists()
    if not args.model and not there:
        raise ValueError(
            f"the adapter was trained on {source!r}, which is not here: name the model's place "
            "with --model"
        )
    return source


def _adapter(directory: Path, model: Any) -> Any:
    """The adapter in the folder, of either format."""
    from jlora import checkpoint, peft

    if _is_peft(directory):
        return peft.load(directory, model)[0]
    return checkpoint.restore(directory, base=model.params)[0]


def _is_peft(directory: Path) -> bool:
    """Whether an adapter is one for `jlora.peft`: no folder of jlora's own, which come first."""
    if directory.is_file():
        return True
    return (
        not (directory / "adapter.json").exists() and (directory / "adapter_config.json").exists()
    )


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def axes(text: str) -> dict[str, int]:
    """The sizes of a mesh's axes, for argparse."""
    try:
        return sizes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

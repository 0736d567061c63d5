"""The setting of a config.json that says how the weights in the files are quantised."""

from __future__ import annotations

from typing import Any

_BITSANDBYTES = "bitsandbytes"
# What each method may say of itself; other entries name modules that are left as they are.
METHODS: dict[str, dict[str, tuple[Any, ...]]] = {
    "fp8": {
        "activation_scheme": ("dynamic",),
        "fmt": ("e4m3",),
        "scale_fmt": ("float", "ue8m0"),
        "expert_dtype": ("fp8",),
    },
    "mxfp4": {},
    _BITSANDBYTES: {"bnb_4bit_quant_type": ("nf4", "fp4")},
}


def problems_of(quantisation: Any) -> list[str]:
    """What of it can't be read; nothing where there is none."""
    if quantisation is None:
        return []
    method = _method(quantisation) if isinstance(quantisation, dict) else None
    if method not in METHODS:
        return [
            f"quantization_config has quant_method {method!r}, but only "
            f"{', '.join(map(repr, METHODS))} are read"
        ]
    found = [
        f"{name} of quantization_config is {value!r}, but only {known[0]!r} is read"
        for name, known in METHODS[method].items()
        if (value := quantisation.get(name)) not in (None, *known)
    ]
    block = quantisation.get("weight_block_size")
    pair = isinstance(block, list | tuple) and len(block) == 2
    if block is not None and not (pair and all(isinstance(n, int) and n > 0 for n in block)):
        found.append(
            f"weight_block_size of quantization_config is {block!r}: expected two numbers above 0"
        )
    return found


def _method(quantisation: dict[str, Any]) -> Any:
    """Its quant_method, which the first folders of bitsandbytes do not say."""
    says = any(quantisation.get(f"load_in_{bits}bit") for bits in (4, 8))
    return _BITSANDBYTES if says else quantisation.get("quant_method")

"""Functional low-rank adapters for any JAX function of a parameter tree.

``frozen, lora = split(params, config, key)``; ``apply = lift(model.apply)``;
``tx = optimizer(optax.adamw(1e-4))``; ``params = merge(frozen, lora)``.
"""

import importlib as _importlib
from importlib import metadata as _metadata
from typing import TYPE_CHECKING

from jlora._combine import combine as combine
from jlora._config import LoraConfig as LoraConfig
from jlora._from_data import eva as eva
from jlora._from_data import lora_ga as lora_ga
from jlora._frozen_beside import frozen_beside as frozen_beside
from jlora._lift import MaterialisedWarning as MaterialisedWarning
from jlora._lift import Report as Report
from jlora._lift import Use as Use
from jlora._lift import explain as explain
from jlora._lift import lift as lift
from jlora._lift import trace_axes as trace_axes
from jlora._lowrank import Axes as Axes
from jlora._merge import merge as merge
from jlora._merge import unmerge as unmerge
from jlora._methods import BiasDelta as BiasDelta
from jlora._methods import DoraWeight as DoraWeight
from jlora._methods import LoraWeight as LoraWeight
from jlora._methods import QaLoraWeight as QaLoraWeight
from jlora._methods import TokenRows as TokenRows
from jlora._methods import WholeWeight as WholeWeight
from jlora._node import Node as Node
from jlora._optim import decay_mask as decay_mask
from jlora._optim import labels as labels
from jlora._optim import lora_plus as lora_plus
from jlora._optim import mask as mask
from jlora._optim import muon_dimensions as muon_dimensions
from jlora._optim import optimizer as optimizer
from jlora._quantised import QuantizedWeight as QuantizedWeight
from jlora._quantize import dequantize as dequantize
from jlora._quantize import quantize as quantize
from jlora._quantize import requantize as requantize
from jlora._rebase import rebase as rebase
from jlora._sharding import shardings as shardings
from jlora._split import split as split
from jlora._summary import Summary as Summary
from jlora._summary import summary as summary
from jlora._traced_axes import TracedAxes as TracedAxes

if TYPE_CHECKING:
    from jlora import checkpoint as checkpoint
    from jlora import compiled as compiled
    from jlora import data as data
    from jlora import extend as extend
    from jlora import finetune as finetune
    from jlora import models as models
    from jlora import peft as peft
    from jlora import tasks as tasks
    from jlora import trainer as trainer

    __version__: str

_MODULES = (  # loaded on first use
    "checkpoint",
    "compiled",
    "data",
    "extend",
    "finetune",
    "models",
    "peft",
    "tasks",
    "trainer",
)


def __getattr__(name: str):
    if name == "__version__":
        return _metadata.version("jlora")
    if name in _MODULES:
        return _importlib.import_module(f"jlora.{name}")
    raise AttributeError(f"module 'jlora' has no attribute {name!r}")


def __dir__():
    return [*globals(), *_MODULES, "__version__"]

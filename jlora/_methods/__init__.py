"""The methods: each file says what one kind of node holds and what computes in its weight's place.

A new method is a file with a `Node`, and its name here; nothing else knows of it.
"""

from jlora._methods._bias_delta import BiasDelta as BiasDelta
from jlora._methods._dora import DoraWeight as DoraWeight
from jlora._methods._lora import LoraWeight as LoraWeight
from jlora._methods._token_rows import TokenRows as TokenRows
from jlora._methods._trained_whole import WholeWeight as WholeWeight
from jlora._node import Node as Node

# What `LoraConfig.method` may name: kinds of low-rank node, made of a plain one and its weight.
METHODS: dict[str, type[LoraWeight]] = {"lora": LoraWeight, "dora": DoraWeight}

NODES: dict[str, type[Node]] = {
    cls.__name__: cls for cls in (LoraWeight, DoraWeight, WholeWeight, BiasDelta, TokenRows)
}

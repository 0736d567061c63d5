"""The interpreter: a function of parameters made a function of (frozen, lora).

One walk (`_walk`) reads the function's jaxpr with a `Weight` (`_weight`: W, or a `_base` that is no
array, and `_term`s) in place of each adapted leaf; what each primitive does with one is a rule
(`_rules`). The walk computes (`_compute`) for `lift` and `explain`, and only looks (`_look`) for
`trace_axes`. What differs between releases of JAX stands in `_jax`.
"""

from jlora._lift import _rules as _rules
from jlora._lift._compute import Use as Use
from jlora._lift._decline import Decline as Decline
from jlora._lift._explain import Report as Report
from jlora._lift._explain import explain as explain
from jlora._lift._lift import MaterialisedWarning as MaterialisedWarning
from jlora._lift._lift import lift as lift
from jlora._lift._movement import Movement as Movement
from jlora._lift._movement import unmoved as unmoved
from jlora._lift._movement import without as without
from jlora._lift._term import Term as Term
from jlora._lift._trace_axes import adapted_otherwise as adapted_otherwise
from jlora._lift._trace_axes import told_left_out as told_left_out
from jlora._lift._trace_axes import told_otherwise as told_otherwise
from jlora._lift._trace_axes import trace_axes as trace_axes
from jlora._lift._walk import Walk as Walk
from jlora._lift._walk import primitives as primitives
from jlora._lift._walk import rule as rule
from jlora._lift._weight import Weight as Weight

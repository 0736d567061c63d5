"""The door: a method, a rule for a primitive, or a frozen leaf of your own.

What the package's own methods and rules are made with.

A method is a `Method`, registered by `register` under a name: a frozen dataclass that says which
fields train (``trainable``), where they lie (`Node.dimensions`), how it starts (`Method.start`) and
what computes in the weight's place (`Node.adapt`): a `Factored` weight of `Product`s of `Factor`s,
an `Elementwise` one, or an array. Then ``LoraConfig(method=YourClass, options={...})`` is all that
differs for `jlora.split`, `jlora.lift`, `jlora.merge`, `jlora.explain`, `jlora.optimizer`,
`jlora.shardings`, `jlora.checkpoint` and, with a `PeftFormat`, `jlora.peft`.

A rule (`rule`) says what a primitive of yours does with a `Weight`; an `InputFilter` stands between
an activation and A; a `FrozenLeaf` stands in the frozen tree for a weight that is kept otherwise.
"""

from jlora._frozen_leaf import FrozenLeaf as FrozenLeaf
from jlora._input_filter import Dropout as Dropout
from jlora._input_filter import InputFilter as InputFilter
from jlora._leaf import Leaf as Leaf
from jlora._lift import Decline as Decline
from jlora._lift import Movement as Movement
from jlora._lift import Term as Term
from jlora._lift import Walk as Walk
from jlora._lift import Weight as Weight
from jlora._lift import primitives as primitives
from jlora._lift import rule as rule
from jlora._lift import unmoved as unmoved
from jlora._lift import without as without
from jlora._lowrank import RANK as RANK
from jlora._lowrank import Dims as Dims
from jlora._lowrank import Elementwise as Elementwise
from jlora._lowrank import Factor as Factor
from jlora._lowrank import Factored as Factored
from jlora._lowrank import Product as Product
from jlora._lowrank import along as along
from jlora._method import Method as Method
from jlora._methods import SharedFactor as SharedFactor
from jlora._node import Node as Node
from jlora._node import Shared as Shared
from jlora._peft_form import Own as Own
from jlora._peft_form import PeftForm as PeftForm
from jlora._peft_format import PeftFormat as PeftFormat
from jlora._registry import register as register

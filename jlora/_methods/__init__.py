"""The methods: each file says what one kind of node holds and what computes in its weight's place.

A new method is a file with a `jlora.extend.Method`, registered under its name; nothing else knows
of it, and nothing here has another way in than methods of others have (`jlora.extend`).
"""

from jlora._methods._bias_delta import BiasDelta as BiasDelta
from jlora._methods._dora import DoraWeight as DoraWeight
from jlora._methods._lora import LoraWeight as LoraWeight
from jlora._methods._qalora import QaLoraWeight as QaLoraWeight
from jlora._methods._shared_factor import SharedFactor as SharedFactor
from jlora._methods._token_rows import TokenRows as TokenRows
from jlora._methods._trained_whole import WholeWeight as WholeWeight

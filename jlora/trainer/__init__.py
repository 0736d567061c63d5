"""The parts of a training run, each usable alone from a script of your own.

A run is a loss, ``(frozen, lora, batch) -> (sum, count)``; a step made of it and an optimizer
(`make_step`); a state that the step takes and gives (`init`); batches, a function of the step's
number; and a loop over them: `iterate` for a ``for`` of your own, `fit` for one that is written.
`Run` is its folder: sealed states to go on from, written by one process at a time.
Nothing here knows what the model or the batch is.
"""

from jlora.trainer._evaluate import mean_loss as mean_loss
from jlora.trainer._loop import Update as Update
from jlora.trainer._loop import every as every
from jlora.trainer._loop import fit as fit
from jlora.trainer._loop import iterate as iterate
from jlora.trainer._optimizers import OPTIMIZERS as OPTIMIZERS
from jlora.trainer._optimizers import update_rule as update_rule
from jlora.trainer._run import Run as Run
from jlora.trainer._schedules import SCHEDULES as SCHEDULES
from jlora.trainer._schedules import schedule as schedule
from jlora.trainer._state import TrainState as TrainState
from jlora.trainer._state import init as init
from jlora.trainer._step import make_step as make_step

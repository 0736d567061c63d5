"""The parts of a training run, each usable alone from a script of your own.

A run is a loss, ``(frozen, lora, batch) -> (sum, count)``; a step made of it and an optimizer
(`make_step`; `outlook` says what it will need); a state that the step takes and gives (`init`);
batches, a function of the step's number; and a loop over them: `iterate` for a ``for`` of your own,
`fit` for one that is written.
Around the loop: how good it is (`evaluate`, `Best`), whether it goes wrong (`Jumps`), what a
person sees of it (`loggers`, `progress`, `draw`), and how they stop it (`stop_on_signals`).
`Run` is its folder: sealed states to go on from, written by one process at a time.
Several processes are one run by `start_processes`, `agreed` and `by_first`.
Nothing here knows what the model or the batch is.
"""

from jlora._cross_entropy import cross_entropy as cross_entropy
from jlora._together import agreed as agreed
from jlora._together import by_first as by_first
from jlora.trainer._best import DIRECTIONS as DIRECTIONS
from jlora.trainer._best import Best as Best
from jlora.trainer._evaluate import evaluate as evaluate
from jlora.trainer._evaluate import mean_loss as mean_loss
from jlora.trainer._figure import draw as draw
from jlora.trainer._fitting import fitting as fitting
from jlora.trainer._fitting import memory_limit as memory_limit
from jlora.trainer._fitting import ran_out as ran_out
from jlora.trainer._jumps import Jumps as Jumps
from jlora.trainer._loggers import LOGGERS as LOGGERS
from jlora.trainer._loggers import Logger as Logger
from jlora.trainer._loggers import Loggers as Loggers
from jlora.trainer._loggers import Metrics as Metrics
from jlora.trainer._loggers import check_loggers as check_loggers
from jlora.trainer._loggers import loggers as loggers
from jlora.trainer._loggers import read_metrics as read_metrics
from jlora.trainer._loop import Update as Update
from jlora.trainer._loop import every as every
from jlora.trainer._loop import fit as fit
from jlora.trainer._loop import iterate as iterate
from jlora.trainer._memory import peak_memory as peak_memory
from jlora.trainer._optimizers import OPTIMIZERS as OPTIMIZERS
from jlora.trainer._optimizers import update_rule as update_rule
from jlora.trainer._outlook import Outlook as Outlook
from jlora.trainer._outlook import outlook as outlook
from jlora.trainer._processes import start_processes as start_processes
from jlora.trainer._progress import Progress as Progress
from jlora.trainer._progress import progress as progress
from jlora.trainer._run import Run as Run
from jlora.trainer._schedules import SCHEDULES as SCHEDULES
from jlora.trainer._schedules import schedule as schedule
from jlora.trainer._sharded import sharded as sharded
from jlora.trainer._signals import Stop as Stop
from jlora.trainer._signals import stop_on_signals as stop_on_signals
from jlora.trainer._state import TrainState as TrainState
from jlora.trainer._state import init as init
from jlora.trainer._state import init_shapes as init_shapes
from jlora.trainer._step import make_step as make_step
from jlora.trainer._stopwatch import Stopwatch as Stopwatch

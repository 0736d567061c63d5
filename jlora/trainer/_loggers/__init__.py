"""Where the numbers of a run go: a file always, and the services that were asked for."""

from jlora.trainer._loggers._logger import Logger as Logger
from jlora.trainer._loggers._metrics import Metrics as Metrics
from jlora.trainer._loggers._metrics import read_metrics as read_metrics
from jlora.trainer._loggers._several import LOGGERS as LOGGERS
from jlora.trainer._loggers._several import Loggers as Loggers
from jlora.trainer._loggers._several import check_loggers as check_loggers
from jlora.trainer._loggers._several import loggers as loggers

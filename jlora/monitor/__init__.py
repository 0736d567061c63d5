"""What a person sees of a run and how they stop it: metrics, a figure, signals.

``with Metrics(path, resume_at=step) as metrics: metrics.write(step, {"loss": loss})``;
``with stop_on_signals() as stop: ... if stop.requested: ...``; ``draw(path, metrics, scores)``.
"""

from jlora.monitor._figure import draw as draw
from jlora.monitor._memory import peak_memory as peak_memory
from jlora.monitor._metrics import Metrics as Metrics
from jlora.monitor._metrics import read_metrics as read_metrics
from jlora.monitor._signals import Stop as Stop
from jlora.monitor._signals import stop_on_signals as stop_on_signals

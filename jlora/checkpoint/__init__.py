"""What survives the process: a finished adapter, and a training run that can go on.

``save(directory, lora, config, base=frozen)``; ``lora, config = restore(directory, base=frozen)``;
``run = Run(directory)``; ``run.save(step, state)``; ``step, state = run.restore(state)``.
"""

from jlora.checkpoint._adapter import describe as describe
from jlora.checkpoint._adapter import outline as outline
from jlora.checkpoint._adapter import restore as restore
from jlora.checkpoint._adapter import save as save
from jlora.checkpoint._fingerprint import Sample as Sample
from jlora.checkpoint._fingerprint import differences as differences
from jlora.checkpoint._fingerprint import fingerprint as fingerprint
from jlora.checkpoint._run import Run as Run

"""A finished adapter in a folder, and which base it belongs to.

``save(directory, lora, config, base=frozen)``; ``lora, config = restore(directory, base=frozen)``.
A run that can go on is `jlora.trainer.Run`.
"""

from jlora.checkpoint._description import describe as describe
from jlora.checkpoint._description import outline as outline
from jlora.checkpoint._fingerprint import differences as differences
from jlora.checkpoint._fingerprint import fingerprint as fingerprint
from jlora.checkpoint._parts import Parts as Parts
from jlora.checkpoint._restore import restore as restore
from jlora.checkpoint._save import save as save

"""Fine-tuning a language model: the settings of a run, and the parts that train.py puts together.

`Settings` and `parse` say what a run is made of; `main` runs a script's ``train`` under them, with
one line for whatever goes wrong. The other names are steps of that script that read a setting.
"""

from jlora.finetune._adapter import start as start
from jlora.finetune._best_by import best as best
from jlora.finetune._best_by import check_measured as check_measured
from jlora.finetune._flags import Asked as Asked
from jlora.finetune._flags import parse as parse
from jlora.finetune._flags import write_settings as write_settings
from jlora.finetune._folder import begin as begin
from jlora.finetune._folder import best_adapter as best_adapter
from jlora.finetune._folder import resume as resume
from jlora.finetune._folder import rows_folder as rows_folder
from jlora.finetune._folder import save as save
from jlora.finetune._kept_start import keep_start as keep_start
from jlora.finetune._layout import layout as layout
from jlora.finetune._layout import spread as spread
from jlora.finetune._main import StoppedError as StoppedError
from jlora.finetune._main import main as main
from jlora.finetune._nonfinite import NonFinite as NonFinite
from jlora.finetune._optimizer import optimizer as optimizer
from jlora.finetune._phases import Phases as Phases
from jlora.finetune._results import evaluated as evaluated
from jlora.finetune._results import plain as plain
from jlora.finetune._results import save_adapters as save_adapters
from jlora.finetune._results import shown as shown
from jlora.finetune._settings import Settings as Settings

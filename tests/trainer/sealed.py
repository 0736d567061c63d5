"""What jlora wrote, changed and sealed again: as if it had been written so."""

import json

from jlora import _sealed_json


def resealed(path, change):
    """Calls ``change`` with what the file says, and writes what it has become."""
    told = json.loads(path.read_text())
    del told["sum"]
    change(told)
    _sealed_json.write(path, told, version=told.pop("version"))

"""Every setting that transformers writes for a family is honoured, or known to change nothing."""

import pytest
from transformers import CONFIG_MAPPING

from jlora.models import _families


@pytest.mark.parametrize("family", _families.FAMILIES)
def test_every_setting_that_transformers_writes_is_known(family):
    config = CONFIG_MAPPING[family]()
    whole = _families.from_huggingface(config.to_dict(), "all settings")
    assert _families.from_huggingface(config.to_diff_dict(), "those that differ") == whole

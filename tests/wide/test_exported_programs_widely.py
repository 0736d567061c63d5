"""A lifted program by DoRA exports with the batch as a symbol, whatever it is made of."""

import pytest
from test_exported_programs import MODELS, check_at_every_batch


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_program_by_dora_is_the_lifted_one_at_every_batch(name):
    check_at_every_batch(name, "dora")

"""Every family's program under remat and in half precision."""

import pytest
from family_programs import check_factored, check_half_precision

from jlora.models._families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_on_every_linear_weight_stay_factored_under_remat_and_in_the_gradient(family):
    check_factored(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_half_precision_give_hidden_states_of_theirs_and_float32_scores(family):
    check_half_precision(family)

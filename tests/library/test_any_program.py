"""Law 1 on programs that nobody thought of; tests/wide draws more of them."""

from drawn import some
from hypothesis import given
from hypothesis import strategies as st
from random_programs import FOREIGN, check_in_bfloat16, check_program, programs


@given(programs())
@some(12)
def test_a_lifted_program_is_the_merged_one_in_values_and_gradients(program):
    check_program(program)


@given(programs(), st.sampled_from(FOREIGN))
@some(6)
def test_so_it_is_with_methods_of_others(program, method):
    check_program(program, method)


@given(programs())
@some(6)
def test_in_bfloat16_a_lifted_program_is_as_near_to_the_exact_one_as_the_merged_is(program):
    check_in_bfloat16(program)

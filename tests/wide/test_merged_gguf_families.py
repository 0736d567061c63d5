"""A merged GGUF file of every family that is read from GGUF holds the merged model."""

import pytest
from merged_files import READ, check_family


@pytest.mark.parametrize("family", READ)
def test_a_merged_file_holds_the_merged_model_of(family, tmp_path):
    check_family(family, tmp_path)

"""Plain text in columns."""

import pytest

from halfway.lab.study import wording

pytestmark = pytest.mark.quick


def test_cells_are_padded_and_ends_are_bare():
    assert wording.align([("a", "bb", "c"), ("dd", "e", "")]) == ["a   bb  c", "dd  e"]

"""Plain text in columns."""

from experiments import columns


def test_cells_are_padded_and_ends_are_bare():
    assert columns.align([("a", "bb", "c"), ("dd", "e", "")]) == ["a   bb  c", "dd  e"]

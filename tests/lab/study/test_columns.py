"""Plain text in columns."""

from halfway.lab.study import wording


def test_cells_are_padded_and_ends_are_bare():
    assert wording.align([("a", "bb", "c"), ("dd", "e", "")]) == ["a   bb  c", "dd  e"]

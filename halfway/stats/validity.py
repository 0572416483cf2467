"""What counts as a number in statistics, finite and of a square that does not overflow; NumPy."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Side = Literal["greater", "less"]
"""Of a threshold, on which a claim is."""
LARGEST = 1e150
"""What is not below it in size is no valid number: its square would overflow."""
ROUNDING = 64 * np.finfo(np.float64).eps
"""Relative distance below which two numbers differ by rounding alone."""


def check_side(alternative: str) -> None:
    """Checks the name of the side of a threshold.

    Raises:
      ValueError: if it is no `Side`.
    """
    if alternative not in ("greater", "less"):
        raise ValueError(f"alternative must be 'greater' or 'less', got {alternative!r}")


def column(values: ArrayLike) -> np.ndarray:
    """Returns values as a float64 array of one axis.

    Raises:
      ValueError: if they have another number of axes.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected one axis, got an array of shape {array.shape}")
    return array


def valid_pairs(*arrays: ArrayLike) -> np.ndarray:
    """Returns the pairs all of whose values are finite and below 1e150, `[P]` bool.

    Args:
      *arrays: `[..., P]`, pairs last, such as numerators and denominators of all conditions.

    Raises:
      ValueError: if there is no array, or the numbers of pairs differ.

    Examples:
      >>> stats.valid_pairs([[1.0, np.nan], [2.0, 3.0]], [1.0, 1.0]).tolist()
      [True, False]
    """
    numbers = [np.asarray(values, np.float64) for values in arrays]
    sizes = {values.shape[-1] if values.ndim else 0 for values in numbers}
    if len(sizes) != 1:
        raise ValueError(f"arrays [..., P] of one number of pairs are needed, got {sorted(sizes)}")
    return np.logical_and.reduce(
        [(np.abs(values) < LARGEST).all(tuple(range(values.ndim - 1))) for values in numbers]
    )

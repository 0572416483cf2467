"""From attacks to transfer: surrogates, targets, controls of equal norm, first order.

The main functions are `transfer.transfer_matrix` and its rates within a program of yours,
`transfer.transfer_grid` for many models, attacks and budgets in bounded memory, and
`transfer.crossed_bootstrap` for intervals over surrogates, targets and examples.
"""

from halfway.transfer.controls import Perturbed, matched_noise, other_example
from halfway.transfer.gradients import (
    FirstOrder,
    alignment,
    first_order,
    gradient_size,
    input_gradients,
    loss_variability,
)
from halfway.transfer.grid import TransferGrid, transfer_grid
from halfway.transfer.matrix import (
    CONTROLS,
    KINDS,
    Attack,
    Evaluation,
    Points,
    TransferMatrix,
    evaluate,
    perturb,
    transfer_matrix,
)
from halfway.transfer.rates import (
    DENOMINATORS,
    Denominator,
    Mistakes,
    Outcomes,
    Rate,
    clean_error,
    coefficient,
    counted,
    increase,
    mistakes,
    outcomes,
    own_increase,
    success,
    summarize,
)
from halfway.transfer.uncertainty import Resampled, crossed_bootstrap, paired_bootstrap

__all__ = [
    "CONTROLS",
    "DENOMINATORS",
    "KINDS",
    "Attack",
    "Denominator",
    "Evaluation",
    "FirstOrder",
    "Mistakes",
    "Outcomes",
    "Perturbed",
    "Points",
    "Rate",
    "Resampled",
    "TransferGrid",
    "TransferMatrix",
    "alignment",
    "clean_error",
    "coefficient",
    "counted",
    "crossed_bootstrap",
    "evaluate",
    "first_order",
    "gradient_size",
    "increase",
    "input_gradients",
    "loss_variability",
    "matched_noise",
    "mistakes",
    "other_example",
    "outcomes",
    "own_increase",
    "paired_bootstrap",
    "perturb",
    "success",
    "summarize",
    "transfer_grid",
    "transfer_matrix",
]

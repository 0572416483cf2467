"""MNIST-1D, MLP and CNN: all studies on 5,000 signals of 40 points, with the defaults of digits.

    pip install mnist1d
    python -m experiments.reproduce --config=configs/mnist1d.py

What was fixed before the first run, from the accuracy on the labels trained on and the run time of
a pilot with another seed, no other number of which was looked at:

    n, S      600 each, as on digits, so that data sets are compared at one n; drawn from all 5,000
    values    −6 to 6, six standard deviations, become 0 to 1: no point lies beyond
    attack    as on digits in units of the mean standard deviation of a pixel (.083 here, .230
              there): ε = .036 decides
    training  as on digits, but 1,000 steps: after 700 the CNN has .98 of its clean labels, after
              1,000 both models all labels at ρ = 0, .2 and 1
    models    as on digits; the CNN sees images of one row
"""

from typing import Any

from halfway.lab.config import shipped


def get_config(variant: str = "") -> Any:
    """Returns the config: that of digits but for what is set here.

    Args:
      variant: see `configs.digits`.

    Raises:
      ValueError: for another variant.
    """
    config: Any = shipped(f"digits:{variant}")
    config.dataset = "mnist1d"
    config.num_holdout = 600
    config.value_range = (-6.0, 6.0)
    config.attack.epsilon = 0.036
    config.attack.budgets = (0.018, 0.036, 0.054, 0.072)
    if not variant:
        config.training.probe_steps = (*config.training.probe_steps, 800, 900, 1000)
        config.hypotheses = ("all",)
    return config

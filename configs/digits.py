"""Digits, MLP and CNN: G1, G2, T1 and T2 on the 1,797 images that scikit-learn ships.

    python -m experiments.reproduce                                     # 16 pairs
    python -m experiments.reproduce --config=configs/digits.py:smoke    # 6 pairs, 300 steps
    python -m experiments.reproduce --config=configs/digits.py:tiny     # 4 pairs, G1, MLP

Run time on 2 CPU cores from cold, compilation included: 94 to 104 s, smoke about 50 s, tiny 11 s
(6 s with its programs compiled).

To expect, seed 0, 16 pairs, exploratory:

    G1 met        M_θ minus control .974 [.965, .984]: .994 − .013 (MLP), .987 − .013 (CNN)
    G2 supported  .585 [.552, .617] of the loss won back by stopping early (MLP), .571 [.531, .612]
                  (CNN); M_θ in error at the end at ρ = 0, .2, .4, .6, .8, 1:
                  MLP .994 .679 .408 .194 .052 −.001; CNN .987 .662 .388 .179 .049 −.003
    T1 met        M_x at ε = .1: .630 (MLP), .530 (CNN)

With 6 pairs no hypothesis has a verdict: sixteen are needed.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(variant: str = "") -> Any:
    """Returns the config: plain data.

    Args:
      variant: "" for the full run, "smoke" for the same hypotheses with 6 pairs and 300 steps,
        "tiny" for tests that start processes.

    Raises:
      ValueError: for another variant.
    """
    if variant not in ("", "smoke", "tiny"):
        raise ValueError(f"unknown variant {variant!r}: choose one of smoke, tiny, or none")
    config: Any = ConfigDict(
        {
            "dataset": "digits",
            # Halves and S are drawn from all 1,797 images, the test split included: S and the
            # other half take the place of a test set.
            "subset": "all",
            "num_classes": 10,
            "seed": 0,
            "num_pairs": 16,
            "num_examples": 600,
            "num_holdout": 597,
            "noise_rates": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
            # The first decides wherever a hypothesis names no architecture.
            "architectures": ("mlp", "cnn"),
            "models": {
                "mlp": {"kind": "mlp", "widths": (128, 128)},
                "cnn": {"kind": "cnn", "features": (16, 32), "stride": 2, "widths": (64,)},
            },
            "training": {
                "optimizer": "adam",
                "learning_rate": 2e-3,
                "weight_decay": 0.0,
                "batch_size": 64,
                # Of training steps alone; "bfloat16" is for accelerators.
                "compute_dtype": "float32",
                "probe_steps": (0, 10, 20, 50, 100, 150, 200, 300, 400, 500, 600, 700),
            },
            # PGD on the margin loss from the clean image, l-infinity; `epsilon` decides.
            "attack": {
                "num_steps": 20,
                "relative_step": 0.15,
                "epsilon": 0.1,
                "budgets": (0.05, 0.1, 0.15, 0.2),
            },
            "hypotheses": ("G1", "G2", "T1", "T2"),
        }
    )
    if variant == "smoke":
        config.num_pairs = 6
        config.noise_rates = (0.0, 0.4, 0.8, 1.0)
        config.training.probe_steps = (0, 10, 20, 50, 100, 150, 200, 300)
    if variant == "tiny":
        config.num_pairs = 4
        config.architectures = ("mlp",)
        config.training.probe_steps = (0, 50, 100)
        config.hypotheses = ("G1",)
    return config

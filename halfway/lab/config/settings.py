"""Settings of a run: plain data, and what flags can override of them."""

from typing import Any

from halfway import models

Config = Any
"""A locked `ml_collections.ConfigDict`, plain data; type checkers know nothing of its fields."""


_FIELDS: dict[str, tuple[str, ...]] = {
    "": (
        "dataset",
        "subset",
        "num_classes",
        "seed",
        "num_pairs",
        "num_examples",
        "num_holdout",
        "noise_rates",
        "architectures",
        "models",
        "hypotheses",
        "training",
        "attack",
    ),
    "training": (
        "optimizer",
        "learning_rate",
        "weight_decay",
        "batch_size",
        "compute_dtype",
        "probe_steps",
    ),
    "attack": ("num_steps", "relative_step", "epsilon", "budgets", "epsilon_calibration"),
}


def _field(config: Config, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def validate(config: Config) -> None:
    """Checks what flags can override.

    Raises:
      ValueError: with the field, its value and the accepted range.
    """
    for group, names in _FIELDS.items():
        for name in names:
            if name not in (config[group] if group else config):
                dotted = f"{group}.{name}" if group else name
                raise ValueError(f"the config has no field {dotted!r}: see configs/digits.py")
    checks = (
        ("seed", 0 <= config.seed < 2**31, "must lie in [0, 2147483647]"),
        ("num_pairs", 2 <= config.num_pairs <= 4096, "must lie in [2, 4096]"),
        ("num_classes", config.num_classes >= 2, "must be at least 2"),
        ("num_examples", config.num_examples >= 1, "must be at least 1"),
        ("num_holdout", config.num_holdout >= 2, "must be at least 2"),
        ("subset", config.subset in ("all", "train"), "must be 'all' or 'train'"),
        ("architectures", len(config.architectures) > 0, "must name at least one model"),
        (
            "architectures",
            set(config.architectures) <= set(config.models),
            f"must be among config.models: {', '.join(config.models)}",
        ),
        (
            "architectures",
            len(set(config.architectures)) == len(config.architectures),
            "must not repeat",
        ),
        (
            "noise_rates",
            len(config.noise_rates) > 0 and all(0 <= r <= 1 for r in config.noise_rates),
            "must lie in [0, 1]",
        ),
        (
            "noise_rates",
            list(config.noise_rates) == sorted(set(config.noise_rates))
            and 0 in config.noise_rates
            and 1 in config.noise_rates
            and len(config.noise_rates) >= 3,
            "must increase from 0 to 1 with at least one rate between",
        ),
        ("training.optimizer", config.training.optimizer in ("adam", "sgd"), "is adam or sgd"),
        (
            "training.compute_dtype",
            config.training.compute_dtype in models.DTYPES,
            "is float32 or bfloat16",
        ),
        ("training.learning_rate", config.training.learning_rate > 0, "must be positive"),
        ("training.weight_decay", config.training.weight_decay >= 0, "must be at least 0"),
        (
            "training.batch_size",
            1 <= config.training.batch_size <= 65536,
            "must lie in [1, 65536]",
        ),
        (
            "training.probe_steps",
            len(config.training.probe_steps) > 0
            and config.training.probe_steps[0] >= 0
            and config.training.probe_steps[-1] >= 1
            and list(config.training.probe_steps) == sorted(set(config.training.probe_steps)),
            "must increase from 0 or more to 1 or more",
        ),
        ("attack.num_steps", config.attack.num_steps >= 1, "must be at least 1"),
        ("attack.relative_step", config.attack.relative_step > 0, "must be positive"),
        ("attack.epsilon", 0 < config.attack.epsilon <= 1, "must lie in (0, 1]"),
        (
            "attack.budgets",
            all(0 < e <= 1 for e in config.attack.budgets),
            "must lie in (0, 1]",
        ),
        (
            "attack.epsilon_calibration",
            0 < config.attack.epsilon_calibration <= 1,
            "must lie in (0, 1]",
        ),
    )
    for name, holds, rule in checks:
        if not holds:
            raise ValueError(f"config.{name} {rule}, got {_field(config, name)!r}")
    for name, value in config.models.items():
        for field, sizes in value.items():
            for size in sizes if isinstance(sizes, tuple) else (sizes,):
                # Names of activations, and what inputs are centred and scaled by, are no sizes.
                if not isinstance(size, str | float) and not size >= 1:
                    raise ValueError(
                        f"config.models.{name}.{field} must be at least 1, got {sizes!r}"
                    )

"""Configs of digits: with changed fields, and one that trains in a second."""

from typing import Any

from halfway.lab.config import config_file, settings
from halfway.lab.config.settings import RunConfig


def digits(variant: str = "", **fields: Any) -> RunConfig:
    """Returns the settings of digits with fields replaced.

    Args:
      variant: "", "smoke" or "tiny".
      **fields: of the config; those of a group as a dict of the fields that change.
    """
    plain = config_file.shipped(f"digits:{variant}").to_dict()
    for name, value in fields.items():
        group = name in ("training", "attack") and isinstance(value, dict)
        plain[name] = plain[name] | value if group else value
    return settings.parse(plain)


def config(
    *, training: dict[str, Any] | None = None, attack: dict[str, Any] | None = None, **fields: Any
) -> RunConfig:
    """Returns the tiny variant with still smaller halves, network and attack.

    Args:
      training: fields of `config.training`, `probe_steps` among them.
      attack: fields of `config.attack`.
      **fields: of the config itself.
    """
    small: dict[str, Any] = {
        "num_pairs": 3,  # on two devices: the padding must not show
        "num_examples": 60,
        "num_holdout": 40,
        "models": {"mlp": {"kind": "mlp", "widths": (12,)}},
    }
    return digits(
        "tiny", training=training or {}, attack={"num_steps": 3} | (attack or {}), **small | fields
    )

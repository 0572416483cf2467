"""A config of digits that trains in a second, for measurements that are checked by number."""

from typing import Any

from ml_collections import ConfigDict

from configs import digits


def config(
    *, training: dict[str, Any] | None = None, attack: dict[str, Any] | None = None, **fields: Any
) -> Any:
    """Returns the tiny variant with still smaller halves, network and attack, locked.

    Args:
      training: fields of `config.training`, `probe_steps` among them.
      attack: fields of `config.attack`.
      **fields: of the config itself, of types that it need not have had before.
    """
    found: Any = ConfigDict(digits.get_config("tiny").to_dict())
    found.num_pairs = 3  # on two devices: the padding must not show
    found.num_examples, found.num_holdout = 60, 40
    found.models.mlp.widths = (12,)
    found.attack.num_steps = 3
    found.training.update(training or {})
    found.attack.update(attack or {})
    with found.ignore_type():
        found.update(fields)
    found.lock()
    return found

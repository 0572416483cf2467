"""Data sets of a run: read with a word where that takes long, checked against the settings."""

import threading
import warnings

from halfway import data
from halfway.lab.config.settings import RunConfig
from halfway.lab.config.user import LOG, UserError
from halfway.lab.runtime import processes

PATIENCE = 2.0
"""Seconds of reading after which a line says so."""


def folder(given: str | None) -> str:
    """Returns the data folder: the given one, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return given or data.default_root()  # empty is unset


def load(name: str, data_dir: str | None) -> data.Dataset:
    """Returns a data set, and says so where that takes long.

    Args:
      name: as of `data.load`.
      data_dir: of the flag.

    Raises:
      UserError: if there is no such data set, or it cannot be read.
    """
    patience = threading.Timer(PATIENCE, LOG.info, ("reading data set %s", name))
    patience.start()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", data.DataWarning)
            dataset = data.load(name, folder(data_dir))
    except data.DataError as error:
        raise UserError(str(error)) from error
    finally:
        patience.cancel()
    for warning in caught:
        LOG.warning("warning: %s", warning.message)
    return dataset


def load_for(config: RunConfig, data_dir: str | None) -> data.Dataset:
    """Returns the data set of a run, the same on all of its processes.

    Args:
      config: of the run.
      data_dir: of the flag.

    Raises:
      UserError: as `load`, and if its classes are not those of the settings or processes differ.
    """
    dataset = load(config.dataset, data_dir)
    if dataset.num_classes != config.num_classes:
        raise UserError(
            f"config.num_classes is {config.num_classes}, but {config.dataset} has "
            f"{dataset.num_classes} classes"
        )
    if processes.shared(lambda: dataset.checksum) != dataset.checksum:
        raise UserError(
            f"{config.dataset} is not the same on all processes: prepare it anew on each"
        )
    return dataset

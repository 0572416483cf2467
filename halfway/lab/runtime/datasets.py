"""Data sets of a run: read, with a log line where that takes long, and checked."""

import threading
import warnings
from collections.abc import Sequence

import jax
import numpy as np

from halfway import data, files
from halfway.keys import named_key
from halfway.lab.config.settings import RunConfig
from halfway.lab.config.user import LOG, UserError
from halfway.lab.runtime import processes, progress

PATIENCE = 2.0
"""Seconds of reading after which a log line says that a data set is being read."""


def folder(given: str | None) -> str:
    """Returns the data folder.

    Args:
      given: the value of the flag; None or empty for $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """
    return given or data.default_root()


def load(
    name: str,
    data_dir: str | None,
    value_range: Sequence[float] = (),
    *,
    max_gb: float = files.MAX_GB,
) -> data.Dataset:
    """Returns a data set; a log line says that it is being read where that takes long.

    Args:
      name: a name that `data.load` takes.
      data_dir: the value of the flag.
      value_range: of signals, see `data.load`.
      max_gb: gigabytes that may be read into memory.

    Raises:
      UserError: if there is no such data set, or it cannot be read.
    """
    patience = threading.Timer(PATIENCE, LOG.info, ("reading data set %s", name))
    patience.start()
    try:
        with (
            progress.doing(f"reading data set {name}"),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always", data.DataWarning)
            dataset = data.load(name, folder(data_dir), value_range=value_range, max_gb=max_gb)
    except data.DataError as error:
        raise UserError(str(error)) from error
    finally:
        patience.cancel()
    for warning in caught:
        LOG.warning("warning: %s", warning.message)
    return dataset


def load_for(
    config: RunConfig, data_dir: str | None, *, max_gb: float = files.MAX_GB
) -> data.Dataset:
    """Returns the data set of a run, the same on all of its processes.

    Args:
      config: the settings of the run.
      data_dir: the value of the flag.
      max_gb: gigabytes that may be read into memory.

    Raises:
      UserError: if the data set cannot be loaded, the number of its classes is not that of the
        settings, or processes have different data.
    """
    dataset = load(config.dataset, data_dir, config.value_range, max_gb=max_gb)
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


def pool_for(config: RunConfig, dataset: data.Dataset) -> data.Split:
    """Returns the examples that halves are drawn from, their labels permuted where the config says.

    Args:
      config: the settings of the run.
      dataset: its data set.
    """
    pool = dataset.pool(config.subset)
    if not config.shuffled_labels:
        return pool
    key = named_key(jax.random.key(config.seed), "shuffled labels")
    order = np.asarray(jax.random.permutation(key, len(pool.labels)))
    return data.Split(pool.images, pool.labels[order])

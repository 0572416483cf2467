"""Landscapes along training as TensorBoard event files, written without TensorFlow."""

import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from halfway.lab.config.user import UserError
from halfway.populations import Population


def check() -> None:
    """Checks that the library that writes event files is installed, before anything is trained.

    Raises:
      UserError: if it is not installed.
    """
    _library()


def curves(population: Population) -> dict[str, np.ndarray]:
    """Returns curves `[T]` over the probe steps of the condition, by tag.

    They are means over both models of the pairs that stayed finite: "own/error",
    "holdout/cross_entropy" and so on for each landscape and loss; "products/own_other" and so on
    for the halves' gradients g and h; "products/coefficient" = E⟨g, h⟩ / E⟨g, g⟩ and
    "products/alignment" = E⟨g, h⟩ / √(E⟨g, g⟩ E⟨h, h⟩), which are ratios of means as in
    `meeting.local_coefficient`.

    Args:
      population: a population of P pairs.
    """
    valid = population.finite

    def mean(values: Any) -> np.ndarray:
        kept = np.asarray(values, np.float64)[valid]
        return kept.mean((0, 1)) if len(kept) else np.full(kept.shape[-1], np.nan)

    means = {
        f"{sample}/{loss}": mean(values)
        for sample, by_loss in population.landscapes.items()
        for loss, values in by_loss.items()
    }
    products = {name: mean(values) for name, values in population.products.items()}
    own_product, both, other = (products[name] for name in ("own_own", "own_other", "other_other"))
    with np.errstate(divide="ignore", invalid="ignore"):
        products["coefficient"] = both / own_product
        products["alignment"] = both / np.sqrt(own_product * other)
    return means | {f"products/{name}": values for name, values in products.items()}


def write(folder: Path, population: Population) -> None:
    """Writes a population's curves as the only event file of a folder, whole or not at all.

    TensorBoard shows each folder as a run. Values that are not finite are left out.

    Args:
      folder: the folder of the condition, replaced if it exists.
      population: the population.

    Raises:
      UserError: if the library is missing, or the folder cannot be written.
    """
    EventsWriter, Event, Summary = _library()
    values_by_tag, now = curves(population), time.time()
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # This writer has no queue, so that a full disk is an error here and not in a thread.
        writer = EventsWriter(str(partial / "events"))
        for index, step in enumerate(population.condition.probe_steps):
            scalars = [
                Summary.Value(tag=tag, simple_value=values[index])
                for tag, values in values_by_tag.items()
                if math.isfinite(values[index])
            ]
            writer.write_event(Event(wall_time=now, step=step, summary=Summary(value=scalars)))
        writer.close()
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): make room for it, or leave "
            "--tensorboard out"
        ) from error


def _library() -> tuple[Any, Any, Any]:
    """Returns the classes of the writer, of an event, and of a summary of scalars."""
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2
    except ImportError as error:
        raise UserError(
            "--tensorboard needs tensorboardX, which is not installed: pip install tensorboardX"
        ) from error
    messages: tuple[Any, Any] = (event_pb2, summary_pb2)  # generated when imported
    return EventsWriter, messages[0].Event, messages[1].Summary

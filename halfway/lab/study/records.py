"""Measurements of a run as labelled arrays: how they are asked for, and what rules read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from halfway.lab.config.settings import RunConfig
from halfway.populations import Condition
from halfway.storage import json_digest

NUMBERS = "numbers"
"""The attribute of a dataset that names the variables which are NaN for pairs that diverged."""
_MOST_NAMED = 8
"""Conditions of a request whose ids are all written out in its name."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A quantity that is measured on populations and stored once, whichever studies ask for it.

    Attributes:
      name: of its files, and of its random draws: for good, what else is measured changes nothing.
      measure: a function of a `measurements.context.Context`, the only place of a study with JAX.
    """

    name: str
    measure: Callable[[Any], xr.Dataset]

    def __post_init__(self) -> None:
        if not self.name.replace("_", "").isalnum():  # a dash separates it from conditions
            raise ValueError(f"a measurement's name has letters, digits and _, got {self.name!r}")


class Request(NamedTuple):
    """A measurement of a condition; further conditions are its controls or partners."""

    measurement: Measurement
    conditions: tuple[Condition, ...]

    @property
    def id(self) -> str:
        """Names the stored measurement; of many conditions, the first and a digest of all."""
        ids = [condition.id for condition in self.conditions]
        if len(ids) > _MOST_NAMED:  # a file's name has an end
            ids = [ids[0], json_digest(ids)[:12]]
        return "-".join((self.measurement.name, *ids))


class Measured:
    """A measurement of one condition.

    Numbers are NaN for pairs that diverged, whatever was computed for them; outcomes of single
    examples are as they were stored.

    Args:
      dataset: with `finite` over `pair`, as `Context.dataset` makes it.
    """

    def __init__(self, dataset: xr.Dataset):
        self.dataset = dataset
        self.finite = np.asarray(dataset["finite"].values, bool)
        self._numbers = frozenset(dataset.attrs[NUMBERS])
        self._variables: dict[str, xr.Variable] = {}
        self._places: dict[str, dict[Any, int]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.dataset

    def __getitem__(self, name: str) -> xr.DataArray:
        """Returns a variable; LookupError where there is none."""
        return self.dataset[name].copy(data=self._variable(name).values)

    def _variable(self, name: str) -> xr.Variable:
        """Returns a variable without its labels, NaN where it is undefined."""
        if name not in self._variables:
            variable = self.dataset.variables[name]
            if name in self._numbers and "pair" in variable.dims and not self.finite.all():
                shape = [-1 if dim == "pair" else 1 for dim in variable.dims]
                values = np.where(self.finite.reshape(shape), variable.values, np.nan)
                variable = variable.copy(data=values)
            self._variables[name] = variable
        return self._variables[name]

    def read(self, name: str, *dims: str, **labels: Any) -> np.ndarray:
        """Returns a variable at some labels as an array with the dimensions in the order named.

        Args:
          name: of the variable.
          *dims: those that are left once the labels are chosen; where none is named, "pair", if the
            variable has it.
          **labels: of the other dimensions.

        Raises:
          LookupError: if there is no such variable or label, or dimensions are left over.
        """
        variable = self._variable(name)
        wanted = dims or tuple(dim for dim in ("pair",) if dim in variable.dims)
        left = [str(dim) for dim in variable.dims if dim not in labels]
        if set(left) != set(wanted) or not set(labels) <= set(variable.dims):
            raise LookupError(f"{name!r} has the dimensions {variable.dims}, not {wanted}")
        # By hand: selecting and transposing in xarray takes a millisecond, rules read thousands.
        place = tuple(
            self._place(str(dim), labels[str(dim)]) if dim in labels else slice(None)
            for dim in variable.dims
        )
        return variable.values[place].transpose([left.index(dim) for dim in wanted])

    def _place(self, dim: str, label: Any) -> int:
        """Returns where a label is along its dimension."""
        if dim not in self._places:
            names = self.dataset[dim].values.tolist()
            self._places[dim] = {name: place for place, name in enumerate(names)}
            if len(self._places[dim]) < len(names):
                raise LookupError(f"labels of {dim} are not distinct: {names}")
        if label not in self._places[dim]:
            raise LookupError(f"{label!r} is not one of the labels of {dim}")
        return self._places[dim][label]


class Records:
    """All measurements of a run. `decide` sees nothing else.

    Args:
      config: of the run.
      datasets: by name of the measurement and id of its first condition.
    """

    def __init__(self, config: RunConfig, datasets: Mapping[tuple[str, str], xr.Dataset]):
        self.config = config
        self.datasets = dict(datasets)
        self._measured: dict[tuple[str, str], Measured] = {}

    def get(self, measurement: Measurement, condition: Condition) -> Measured:
        """Returns what was measured of a condition.

        Args:
          measurement: by its name.
          condition: the first of those it was asked for.

        Raises:
          LookupError: if it was not.
        """
        place = measurement.name, condition.id
        if place not in self._measured:
            if place not in self.datasets:
                raise LookupError(f"no measurement {place[0]!r} of condition {place[1]}")
            self._measured[place] = Measured(self.datasets[place])
        return self._measured[place]

    def has(self, measurement: Measurement, condition: Condition) -> bool:
        """Returns whether a condition was measured.

        Args:
          measurement: by its name.
          condition: the first of those it was asked for.
        """
        return (measurement.name, condition.id) in self.datasets


def to_arrays(dataset: xr.Dataset) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of a dataset by name, and what else it takes to make it again.

    Args:
      dataset: as `Context.dataset` makes it.
    """
    arrays = {f"values/{name}": v.values for name, v in dataset.data_vars.items()}
    arrays |= {f"labels/{name}": v.values for name, v in dataset.coords.items()}
    dims = {str(name): list(map(str, v.dims)) for name, v in dataset.data_vars.items()}
    return arrays, {"dims": dims, NUMBERS: list(dataset.attrs[NUMBERS])}


def from_arrays(arrays: Mapping[str, np.ndarray], structure: Mapping[str, Any]) -> xr.Dataset:
    """Returns the dataset that `to_arrays` took apart.

    Args:
      arrays: by name.
      structure: what else it takes.
    """
    labels = {
        name.removeprefix("labels/"): values
        for name, values in arrays.items()
        if name.startswith("labels/")
    }
    variables = {name: (dims, arrays[f"values/{name}"]) for name, dims in structure["dims"].items()}
    return xr.Dataset(variables, labels, {NUMBERS: tuple(structure[NUMBERS])})


def to_table(datasets: Mapping[tuple[str, str], xr.Dataset]) -> pd.DataFrame:
    """Returns every number as a row, for use outside: an export, not a working form.

    Args:
      datasets: by name of the measurement and id of its first condition.

    Returns:
      columns `measurement`, `condition`, `quantity`, a column for each dimension (null where a
      quantity has none of it) and `value`.
    """
    parts = []
    for (name, condition), dataset in sorted(datasets.items()):
        for quantity in (*dataset.attrs[NUMBERS], "finite"):
            variable = dataset[quantity]
            named = variable.rename("value")
            frame = named.to_dataframe() if named.dims else pd.DataFrame({"value": [named.item()]})
            frame = frame.reset_index(drop=not named.dims)[[*named.dims, "value"]]
            frame["value"] = frame["value"].astype("float64")
            labels = {"measurement": name, "condition": condition, "quantity": str(quantity)}
            parts.append(frame.assign(**labels))
    table = pd.concat(parts, ignore_index=True)
    first = ["measurement", "condition", "quantity"]
    dims = sorted(set(table.columns) - {*first, "value"})
    labels = table[[*first, *dims]].convert_dtypes()
    # A dimension whose labels are numbers here and words there holds words.
    words = {dim: labels[dim].map(str, "ignore") for dim in dims if labels[dim].dtype == object}
    return labels.assign(**words).convert_dtypes().assign(value=table["value"])


def conditions_table(conditions: list[Condition]) -> pd.DataFrame:
    """Returns one row a condition, its fields as columns, indexed by its id."""
    fields = [
        {k: str(v) if isinstance(v, dict | list | tuple) else v for k, v in c.to_json().items()}
        for c in conditions
    ]
    index = pd.Index([c.id for c in conditions], name="condition", dtype="string")
    return pd.DataFrame(fields, index=index)

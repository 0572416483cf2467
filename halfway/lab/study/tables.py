"""Records as a long table: how rows are written, and how rules read arrays back from them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from halfway.lab.study.protocol import COLUMNS, Records
from halfway.populations import Condition

HALVES = ("A", "B")
LOSSES = ("error", "brier", "cross_entropy")
OTHER = {"A": "B", "B": "A"}


def rows(values: np.ndarray, axes: Mapping[str, Sequence[Any]], **constants: Any) -> pd.DataFrame:
    """Returns one row for each number of an array.

    Args:
      values: with one axis for each entry of `axes`, in its order.
      axes: column name to the labels along that axis.
      **constants: columns with one value.

    Raises:
      ValueError: if the shape does not fit the labels.
    """
    values = np.asarray(values, np.float64)
    shape = tuple(len(labels) for labels in axes.values())
    if values.shape != shape:
        raise ValueError(f"values of shape {values.shape} do not fit labels of shape {shape}")
    index = pd.MultiIndex.from_product(list(axes.values()), names=list(axes))
    table = index.to_frame(index=False)
    table = table.assign(value=values.reshape(-1), **constants)
    return normalize(table)


def normalize(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table with all of `COLUMNS` in order, of types that a Parquet file keeps."""
    table = table.reindex(columns=list(COLUMNS))
    integers, floats = ("pair", "step"), ("budget", "value")
    for name in COLUMNS:
        if name in integers:
            table[name] = table[name].astype("Int64")
        elif name in floats:
            table[name] = table[name].astype("float64")
        else:
            table[name] = table[name].astype("string")
    return table


def concat(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Returns the tables below each other; an empty one with all columns if there are none."""
    if not tables:
        return normalize(pd.DataFrame(columns=list(COLUMNS)))
    return normalize(pd.concat(tables, ignore_index=True))


def conditions_table(conditions: Sequence[Condition]) -> pd.DataFrame:
    """Returns one row a condition, its fields as columns, indexed by its key, in a fixed order."""
    fields = [
        {k: str(v) if isinstance(v, dict | list | tuple) else v for k, v in c.to_json().items()}
        for c in conditions
    ]
    index = pd.Index([c.key for c in conditions], name="condition", dtype="string")
    return pd.DataFrame(fields, index=index)


class Terms(NamedTuple):
    """Numerators and denominators `[P]` of a meeting coefficient; NaN for pairs that diverged."""

    numerators: np.ndarray
    denominators: np.ndarray


class Reader:
    """Reads dense arrays out of records; a hole or a doubled row is an error, never a zero."""

    def __init__(self, records: Records):
        table = records.table
        self._value = table["value"].to_numpy(np.float64)
        self._numeric = {
            name: table[name].to_numpy(np.float64, na_value=np.nan)
            for name in ("pair", "step", "budget")
        }
        self._text = {name: table[name] for name in COLUMNS[:-1] if name not in self._numeric}
        self._factors: dict[str, tuple[np.ndarray, dict[str, int]]] = {}
        # Rows of one condition and quantity, found once.
        (conditions, _), (quantities, names) = map(self._factor, ("condition", "quantity"))
        num_quantities = max(1, len(names))
        group = conditions * num_quantities + quantities
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        self._groups = {
            divmod(int(group[order[start]]), num_quantities): rows
            for start, rows in zip(starts, np.split(order, starts)[1:], strict=True)
        }

    def _factor(self, name: str) -> tuple[np.ndarray, dict[str, int]]:
        """Returns a column as codes, -1 for null, and the code of each label, when it is needed."""
        if name not in self._factors:
            column = self._numeric.get(name, self._text.get(name))
            codes, labels = pd.factorize(column, sort=True)
            self._factors[name] = codes, {str(label): code for code, label in enumerate(labels)}
        return self._factors[name]

    def cube(
        self, condition: str, quantity: str, by: Sequence[str] = ("pair",), **columns: Any
    ) -> np.ndarray:
        """Returns values with one axis for each column of `by`, labels ascending.

        Args:
          condition: its key.
          quantity: what is read.
          by: columns that become axes.
          **columns: column values that the rows must have.

        Raises:
          LookupError: if there are no such rows, or they do not fill the axes exactly once.
        """
        return self.stack([condition], [quantity], by, **columns)[0, 0]

    def stack(
        self,
        conditions: Sequence[str],
        quantities: Sequence[str],
        by: Sequence[str] = ("pair",),
        **columns: Any,
    ) -> np.ndarray:
        """Returns several cubes of one shape, `[quantities, conditions, ...]`.

        Args, errors: as of `cube`.
        """
        parts = [
            self._groups.get(self._at(condition, quantity), np.empty(0, int))
            for quantity in quantities
            for condition in conditions
        ]
        rows = np.concatenate(parts)
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        kept = np.ones(len(rows), bool)
        for name, value in columns.items():
            if name in self._numeric:
                kept &= self._numeric[name][rows] == value
            else:
                codes, labels = self._factor(name)
                kept &= codes[rows] == labels.get(str(value), -2)
        rows, owner = rows[kept], owner[kept]
        present = np.bincount(owner, minlength=len(parts)) > 0
        if not present.all():
            quantity, condition = divmod(int(np.argmin(present)), len(conditions))
            raise LookupError(
                f"no {quantities[quantity]!r} of condition {conditions[condition]} with {columns}"
            )
        places, shape = [owner], [len(parts)]
        for name in by:
            codes, labels = self._factor(name)
            codes = codes[rows]
            present = np.zeros(len(labels) + 1, bool)  # null, code -1, comes last
            present[codes] = True
            places.append((np.cumsum(present) - 1)[codes])
            shape.append(int(present.sum()))
        flat = np.ravel_multi_index(places, shape)
        filled = np.zeros(int(np.prod(shape)), bool)
        filled[flat] = True
        if len(rows) != len(filled) or not filled.all():
            raise LookupError(
                f"{len(rows)} rows do not fill {tuple(by)} {tuple(shape[1:])}: "
                f"{', '.join(map(repr, quantities))} of condition {', '.join(conditions[:3])}"
                f"{' ...' if len(conditions) > 3 else ''} with {columns}"
            )
        out = np.empty(len(rows))
        out[flat] = self._value[rows]
        return out.reshape(len(quantities), len(conditions), *shape[1:])

    def has(self, condition: str, quantity: str) -> bool:
        """Returns whether there is any such row."""
        return self._at(condition, quantity) in self._groups

    def _at(self, condition: str, quantity: str) -> tuple[int, int]:
        names = ("condition", condition), ("quantity", quantity)
        return tuple(self._factor(column)[1].get(value, -1) for column, value in names)  # pyright: ignore

    def finite(self, condition: str) -> np.ndarray:
        """Returns `[P]` whether both models of a pair stayed finite in training."""
        return self.cube(condition, "finite") > 0.5

    def losses(self, condition: str, loss: str, subset: str) -> np.ndarray:
        """Returns `[P, 2, T]` losses of a subset ("own", "other", "holdout"), NaN if diverged."""
        curves = self.cube(condition, loss, ("pair", "surrogate", "step"), subset=subset)
        return np.where(self.finite(condition)[:, None, None], curves, np.nan)

    def terms(self, condition: str, loss: str = "error", at: str = "end") -> Terms:
        """Returns numerators and denominators of M_θ, both directions summed.

        Args:
          condition: its key.
          loss: of `LOSSES`.
          at: "end" of training, or "best": the probe at which S, as labelled, has the least
            cross-entropy, chosen for each model.
        """
        progress = []
        for subset in ("other", "own"):
            curves = self.losses(condition, loss, subset)
            constant = self.cube(
                condition, f"constant_{loss}", ("pair", "surrogate"), subset=subset
            )
            if at == "end":
                final = curves[..., -1]
            else:
                holdout = self.losses(condition, "cross_entropy", "holdout")
                best = np.where(np.isnan(holdout), np.inf, holdout).argmin(-1)
                final = np.take_along_axis(curves, best[..., None], -1)[..., 0]
            progress.append((constant - final).sum(-1))
        return Terms(*progress)

    def gap(self, condition: str, loss: str = "error") -> np.ndarray:
        """Returns `[P]` the symmetric estimate of the generalization gap at the end (P2)."""
        other, own = (self.losses(condition, loss, name)[..., -1] for name in ("other", "own"))
        return (other - own).mean(-1)

    def training_accuracy(self, condition: str) -> np.ndarray:
        """Returns `[P]` accuracy at the end on the labels trained on, mean of the two models."""
        return 1 - self.losses(condition, "error", "own")[..., -1].mean(-1)

    def directed(
        self,
        condition: str,
        quantity: str,
        *,
        attack: str,
        budget: float,
        target: str = "other",
        subset: str = "all",
    ) -> np.ndarray:
        """Returns `[P]` sums of a transfer quantity over both directions, NaN if diverged.

        Args:
          condition: its key.
          quantity: "increase", "num_fooled" or "num_examples".
          attack: "clean", "attack", "noise" or "other_example".
          budget: ε.
          target: "other" model of the pair, the surrogate's "own" model, or "permuted": the other
            half's model trained on permuted labels.
          subset: the denominator.
        """
        total = np.zeros(())
        for surrogate, partner in OTHER.items():
            names = {"other": partner, "own": surrogate, "permuted": f"{partner} permuted"}
            total = total + self.cube(
                condition,
                quantity,
                attack=attack,
                budget=budget,
                surrogate=surrogate,
                target=names[target],
                subset=subset,
            )
        return np.where(self.finite(condition), total, np.nan)

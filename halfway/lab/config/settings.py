"""Typed settings of a run: the fields that a config file and flags may set, with their ranges.

A config file gives an `ml_collections.ConfigDict`, flags give text. `parse` turns both into a
frozen `RunConfig`; no other code sees a ConfigDict.
"""

import ast
import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import annotated_types
import pydantic
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from halfway import custom_models, models
from halfway.lab.config import user
from halfway.lab.config.user import UserError


def _number(value: Any) -> Any:
    return user.number(value) if isinstance(value, str) else value


def _items(value: Any) -> Any:
    """Returns the items of "(0, 0.5, 1)" or "0,0.5,1"; a single value becomes a tuple."""
    if isinstance(value, str):
        items = value.strip().strip("()[]").split(",")
        return tuple(item.strip().strip("'\"") for item in items if item.strip())
    return value if isinstance(value, list | tuple) else (value,)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value  # scalars of NumPy


Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0)]
Rate = Annotated[Number, Field(ge=0, le=1)]
Budget = Annotated[Number, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Names = Annotated[tuple[str, ...], BeforeValidator(_items)]


def _probes(steps: tuple[int, ...]) -> tuple[int, ...]:
    if not steps or steps[-1] < 1 or list(steps) != sorted(set(steps)):
        raise ValueError("must increase from 0 or more to 1 or more")
    return steps


def _rates(rates: tuple[float, ...]) -> tuple[float, ...]:
    if list(rates) != sorted(set(rates)) or not {0.0, 1.0} < set(rates):
        raise ValueError("must increase from 0 to 1 with at least one rate between")
    return rates


def _interval(values: tuple[float, ...]) -> tuple[float, ...]:
    if values and (len(values) != 2 or values[0] >= values[1]):
        raise ValueError("must be empty or two numbers, the lower first")
    return values


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("must name at least one model, and none twice")
    return names


_STRICT = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Training:
    """How models are trained.

    Attributes:
      optimizer: "adam" or "sgd".
      learning_rate: the learning rate.
      weight_decay: decoupled weight decay, which is multiplied by the learning rate.
      batch_size: the number of examples of a step.
      compute_dtype: the type of forward and backward pass; parameters are float32.
      probe_steps: increasing steps at which landscapes are measured; the last step ends training.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Positive
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=65536)]
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    probe_steps: Annotated[tuple[Steps, ...], BeforeValidator(_items), AfterValidator(_probes)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Attack:
    """How models are attacked: PGD on the margin loss from the clean image, in l∞.

    Attributes:
      num_steps: the number of steps of PGD.
      relative_step: the length of a step as a share of the budget.
      epsilon: the budget that decides.
      budgets: the budgets of the curve beside it.
    """

    num_steps: Count
    relative_step: Positive
    epsilon: Budget
    budgets: Annotated[tuple[Budget, ...], BeforeValidator(_items)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LandscapeSizes:
    """How much of a landscape is drawn.

    Attributes:
      num_pairs: the number of pairs of the population, at most P; planes and sections show the
        first.
      num_points: T, the number of points on a segment.
      grid: the number of points along each side of a plane.
      num_examples: the number of examples of each half for planes, slices and spectra, at most n.
      chunk_size: the number of examples taken at once.
      num_eigenvalues: the number of largest eigenvalues.
      num_steps: the number of Lanczos steps for a density.
      num_samples: the number of random starts of a density, and of a trace.
      num_class_examples: the number of examples of each half for the meeting matrix, and of S for
        alignments.
      overlap: the overlap of the halves in the population that is drawn, 0 to 1; at 1 both models
        have the same data.
    """

    num_pairs: Count = 8
    num_points: Annotated[int, Field(ge=3)] = 25
    grid: Annotated[int, Field(ge=3)] = 25
    num_examples: Count = 600
    chunk_size: Count = 300
    num_eigenvalues: Count = 5
    num_steps: Count = 40
    num_samples: Annotated[int, Field(ge=2)] = 8
    num_class_examples: Count = 100
    overlap: Rate = 0.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunConfig:
    """The settings of a run.

    Attributes:
      dataset: a name that `data.load` takes.
      value_range: of signals, the two values that become 0 and 1; empty for images.
      subset: the part of the data set that halves are drawn from: "train", or "all" for train and
        test split.
      num_classes: C, the number of classes.
      seed: the seed of every draw.
      num_pairs: P, the number of pairs of each condition.
      num_examples: n, the number of examples of each half.
      num_holdout: the number of examples of S.
      noise_rates: the rates ρ of label noise, increasing from 0 to 1.
      architectures: names among `models`; the first is used where a hypothesis names none.
      models: a plain config for each name, as `models.build` takes it.
      training: how models are trained.
      attack: how models are attacked.
      hypotheses: the ids of the hypotheses that are run where `--only` is not given.
      shuffled_labels: whether the labels of the whole pool are permuted before anything is drawn:
        the global null, on which nothing may be claimed.
      landscape: how much of the landscapes is drawn.
    """

    dataset: str
    subset: Literal["all", "train"]
    num_classes: Annotated[int, Field(ge=2)]
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)]
    num_pairs: Annotated[int, Field(ge=2, le=4096)]
    num_examples: Count
    num_holdout: Annotated[int, Field(ge=2)]
    noise_rates: Annotated[tuple[Rate, ...], BeforeValidator(_items), AfterValidator(_rates)]
    architectures: Annotated[Names, AfterValidator(_distinct)]
    models: dict[str, dict[str, Any]]
    training: Training
    attack: Attack
    hypotheses: Names
    value_range: Annotated[
        tuple[Number, ...], BeforeValidator(_items), AfterValidator(_interval)
    ] = ()
    shuffled_labels: bool = False
    landscape: LandscapeSizes = LandscapeSizes()

    @pydantic.field_validator("models")
    @classmethod
    def _check_models(cls, models_by_name: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: _model(name, fields) for name, fields in models_by_name.items()}

    def __post_init__(self) -> None:
        unknown = [name for name in self.architectures if name not in self.models]
        if unknown:
            raise UserError(
                f"config.architectures must be among config.models: {', '.join(self.models)}, got "
                f"{unknown[0]!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain dicts, which `parse` reads."""
        return dataclasses.asdict(self)


def _model(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's plain config with every field of the type that its module declares.

    Raises:
      UserError: for an unknown kind, field or activation, a value of another type, or a size below
        1.
    """
    plain = {field: _plain(value) for field, value in fields.items()}
    kind = str(plain.get("kind"))
    if custom_models.is_custom(kind) and custom_models.DIGEST_FIELD in plain:
        return plain  # of a stored run: it can be read where the user's file is not
    try:
        declared = models.fields_of(kind)
        for field, value in plain.items():
            if field in declared:
                plain[field] = _of_type(f"models.{name}.{field}", declared[field], value)
        models.build(plain, num_classes=2)
        if custom_models.is_custom(kind):
            plain[custom_models.DIGEST_FIELD] = custom_models.source_digest(kind)
    except ValueError as error:
        raise UserError(f"config.models.{name}: {error}") from error
    return plain


def _of_type(where: str, kind: Any, value: Any) -> Any:
    """Returns a value as the type that a model's field has; sizes are at least 1."""
    if kind is int:
        kind = Count
    elif kind is float:
        kind = Number
    elif typing.get_origin(kind) is tuple:
        kind = Annotated[tuple[Count, ...], BeforeValidator(_items)]
    try:
        return pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error, kind, where)) from error


def parse(plain: Mapping[str, Any]) -> RunConfig:
    """Returns typed settings from the plain data of a config file, of flags or of JSON.

    Text is read as the type of its field, so that flags may say "8/255" and "0.05,0.1".

    Args:
      plain: nested dicts of fields.

    Raises:
      UserError: for the first field that is missing, unknown, of another type or out of range,
        with its name, value and range.
    """
    try:
        return pydantic.TypeAdapter(RunConfig).validate_python(dict(plain))
    except pydantic.ValidationError as error:
        raise UserError(_explain(error, RunConfig, "")) from error


def override(plain: Mapping[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """Returns plain data with fields replaced by the texts of flags.

    Args:
      plain: nested dicts of a config file.
      overrides: the texts by dotted name of the field; `models.NAME` may be a user's own model,
        `pkg.module:build`.

    Raises:
      UserError: for a name that is no field; the message has the nearest field.
    """
    changed = {name: _copied(value) for name, value in plain.items()}
    whole = {name: text for name, text in overrides.items() if _is_model(name, text)}
    for name, text in whole.items():
        changed.setdefault("models", {})[name.removeprefix(_MODELS)] = {"kind": text}
    known = fields_of(RunConfig) | leaves(changed) | _fields_of_models(changed)
    for name, text in overrides.items():
        if name in whole:
            continue
        if name not in known:
            raise UserError(f"unknown config field {name!r}: {_hint(name, known)}")
        *groups, last = name.split(".")
        place = changed
        for group in groups:
            place = place.setdefault(group, {})
        # Fields of models are typed by their modules, so that a Python literal is read as such.
        place[last] = _literal(text) if groups[:1] == ["models"] else text
    return changed


_MODELS = "models."


def _is_model(name: str, text: str) -> bool:
    """Returns whether a field is a whole model, `models.NAME=pkg.module:build`."""
    rest = name.removeprefix(_MODELS)
    return rest != name and "." not in rest and custom_models.is_custom(text)


def _fields_of_models(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that the models of a config could have, by dotted name."""
    fields = {}
    for name, model in plain.get("models", {}).items():
        with contextlib.suppress(ValueError, AttributeError):
            declared = models.fields_of(str(model.get("kind")))
            fields |= {f"models.{name}.{field}": kind for field, kind in declared.items()}
    return fields


def _copied(value: Any) -> Any:
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _hint(name: str, known: Mapping[str, Any]) -> str:
    inside = [field for field in known if field.startswith(f"{name}.")]
    if inside:
        return f"it is a group of fields: {', '.join(inside)}"
    wanted = name.rpartition(".")[2]
    last = {field: field.rpartition(".")[2] for field in known}
    close = [field for field, end in last.items() if end == wanted]
    close += [f for f, end in last.items() if "".join(w[0] for w in end.split("_")) == wanted]
    close += difflib.get_close_matches(name, known, n=1)
    nearest = difflib.get_close_matches(wanted, last.values(), n=1)
    close += [field for field, end in last.items() if end in nearest]
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def leaves(config: RunConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of all fields by dotted name.

    Args:
      config: typed settings, or nested plain dicts.
    """
    plain = config.to_dict() if isinstance(config, RunConfig) else config
    return dict(_leaves(plain, ""))


def _leaves(plain: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def fields_of(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the declared types of all fields of a settings class by dotted name.

    Args:
      kind: the settings class.
      prefix: what stands before each name, e.g. "training.".
    """
    declared = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            declared |= fields_of(field.type, f"{prefix}{field.name}.")
        elif field.name != "models":
            declared[f"{prefix}{field.name}"] = field.type
    return declared


def _explain(error: pydantic.ValidationError, kind: Any, where: str) -> str:
    """Returns one line for the first field that is wrong: its name, rule and value."""
    first: dict[str, Any] = dict(error.errors()[0])
    path = [str(part) for part in first["loc"] if isinstance(part, str)]
    name = ".".join(filter(None, (where, *path)))
    if first["type"] in ("missing", "missing_keyword_only_argument"):
        return f"the config has no field {name!r}: see configs/digits.py"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown config field {name!r}: {_hint(name, fields_of(RunConfig))}"
    declared = kind if where else fields_of(RunConfig).get(name, kind)
    value = first["input"]
    if first["type"] == "value_error" and not str(first["ctx"]["error"]).startswith("must"):
        rule = f"must be {_kind(declared)}"
    elif first["type"] == "value_error":
        rule = str(first["ctx"]["error"])
    elif first["type"] == "finite_number":
        rule = "must be finite"
    elif first["type"] in _OUT_OF_RANGE:
        rule = f"must {_range(declared)}"
    elif first["type"] == "literal_error":
        rule = f"is {' or '.join(typing.get_args(declared))}"
    else:
        rule = f"must be {_kind(declared)}"
    return f"config.{name} {rule}, got {value!r}"


_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def _unwrapped(kind: Any) -> tuple[Any, list[Any]]:
    """Returns a type without its annotations, and what they are."""
    if typing.get_origin(kind) is Annotated:
        inner, *metadata = typing.get_args(kind)
        plain, deeper = _unwrapped(inner)
        return plain, [*deeper, *metadata]
    return kind, []


def _kind(kind: Any) -> str:
    plain, _ = _unwrapped(kind)
    if typing.get_origin(plain) is tuple:
        item, _ = _unwrapped(typing.get_args(plain)[0])
        nouns = {int: "integers", float: "numbers", str: "names"}
        return f"a tuple of {nouns[item]}"
    if isinstance(plain, types.UnionType):
        return " or ".join(map(_kind, typing.get_args(plain)))
    if dataclasses.is_dataclass(plain) or typing.get_origin(plain) is dict:
        return "a group of fields, which are set one by one"
    return _KINDS.get(plain, str(plain))


def _range(kind: Any) -> str:
    """Returns the range of a number, or of the items of a tuple, in words."""
    plain, metadata = _unwrapped(kind)
    if typing.get_origin(plain) is tuple:
        return _range(typing.get_args(plain)[0])
    low, high, opening = None, None, "["
    for item in (part for entry in metadata for part in getattr(entry, "metadata", [entry])):
        if isinstance(item, annotated_types.Gt):
            low, opening = item.gt, "("
        elif isinstance(item, annotated_types.Ge):
            low = item.ge
        elif isinstance(item, annotated_types.Le):
            high = item.le
    if high is not None:
        return f"lie in {opening}{low}, {high}]"
    return "be positive" if opening == "(" else f"be at least {low}"

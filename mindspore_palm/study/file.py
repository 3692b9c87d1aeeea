"""A study as a YAML file: what is trained, what is held equal, and which comparisons are made, decided beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.fields import Count, CountOrZero, Name, Positive, Section
from mindspore_palm.files import expanded
from mindspore_palm.settings import load_settings, read_yaml
from mindspore_palm.study.equal import equal_d_ff

MOST_BYTES = 1 << 20  # of a study's file
SETTINGS = (
    "model",
    "optimizer",
    "data.path",
    "data.seq_len",
    "data.text_field",
    "data.prepared",
    "data.validation_fraction",
    "data.tokenizer",
    "data.tokenizer_megabytes",
    "train.steps",
    "train.batch_size",
    "train.z_loss",
)
"""Settings, and sections of settings, that a study may decide. The others are of a run with a folder, or of a mesh."""
OfLoss = Literal["loss", "loss_beyond"]
OfTime = Literal["step_time", "update_time", "decode_time"]
Counted = Literal[
    "parameters", "flops", "attention_parameters", "attention_flops", "kv_flops", "state_bytes", "cache_bytes"
]
Elsewhere = Literal["predicted_step", "all_reduces"]
LOSSES, TIMES, COUNTS, ELSEWHERE = map(get_args, (OfLoss, OfTime, Counted, Elsewhere))
Value = bool | int | float | str


class Variant(Section):
    """A network, or a way to train it, that differs from the base."""

    set: dict[str, Value] = Field(default={})
    """The settings in which it differs."""
    hold: Literal["parameters", "flops", "nothing"] = "parameters"
    """The cost that it has in common with the base, by its own model.d_ff. Default parameters."""


class Rates(Section):
    """Learning rates that are tried alike for every variant."""

    grid: Annotated[list[Positive], Field(min_length=1)]
    """Peak learning rates."""
    seeds: Annotated[list[CountOrZero], Field(min_length=1)]
    """Seeds of these runs; none of them is a seed of the comparison."""
    sizes: Annotated[list[Name], Field(min_length=1)]
    """Sizes at which rates are tuned; any other size takes the rate of the nearest one by FLOPs."""


class Comparison(Section):
    """One difference between a variant and the base."""

    claim: Name
    """The claim that it is evidence for."""
    measure: Literal[OfLoss, OfTime, Counted, Elsewhere]
    """The quantity that is compared."""
    variant: Name
    """The variant that is compared with the base."""
    sizes: list[Name] = Field(default=[])
    """Sizes at which it is compared, each by itself."""
    expects: Literal["higher", "lower", "anything"]
    """Where the claim puts the variant; anything only records the difference."""
    about: list[float] | None = None
    """Percent between which the claim puts the difference, if it names a number."""
    decode: list[tuple[Count, Count]] = Field(default=[])
    """decode_time and cache_bytes: pairs of batch and context."""
    configs: list[Name] = Field(default=[])
    """predicted_step and all_reduces: configuration files."""
    machine: str = ""
    """predicted_step: the machine."""

    @model_validator(mode="before")
    @classmethod
    def _pairs(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(pairs := values.get("decode"), list):
            return {**values, "decode": [tuple(pair) if isinstance(pair, list) else pair for pair in pairs]}
        return values

    @model_validator(mode="after")
    def _fits(self) -> Comparison:
        needs = {
            "decode": self.measure in ("decode_time", "cache_bytes"),
            "configs": self.measure in ELSEWHERE,
            "machine": self.measure == "predicted_step",
            "sizes": self.measure not in ELSEWHERE,
        }
        for name, needed in needs.items():
            if bool(getattr(self, name)) != needed:
                raise ValueError(f"measure {self.measure} {'needs' if needed else 'has no'} {name}")
        if self.about is not None and (len(self.about) != 2 or self.about[0] >= self.about[1]):
            raise ValueError(f"about {self.about} must be two rising numbers, in percent")
        return self


class Claim(Section):
    """A sentence that the study tests."""

    title: Name
    says: Name
    """The claim, in its own words."""
    note: str = ""
    """Remarks for the reader about the measurements."""


class Fitted(Section):
    """The line of loss over compute."""

    sizes: Annotated[list[Name], Field(min_length=4)]
    """At least four sizes of the base."""


class Times(Section):
    """Times, measured in turns."""

    rounds: Annotated[int, Field(ge=2, le=1000)] = 12
    """Turns of each contender. Default 12."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 5
    """Steps of a turn; the turn counts with their median. Default 5."""


class Quick(Section):
    """The smaller study of ``--quick``."""

    seeds: Annotated[list[CountOrZero], Field(min_length=2)]
    steps: Count
    grid: Annotated[list[Positive], Field(min_length=1)]
    sizes: Annotated[list[Name], Field(min_length=1)]
    """Sizes of the comparisons that are made; the others are left out, and the report says so."""
    rounds: Annotated[int, Field(ge=2, le=1000)] = 4


class Study(Section):
    """A study, as its file says it."""

    title: Name
    base: Name
    """The variant that the others are compared with."""
    settings: dict[str, dict[str, Any]] = Field(default={})
    """Settings of all runs, as in any configuration."""
    sizes: Annotated[dict[str, dict[str, Value]], Field(min_length=1)]
    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    rates: Rates
    seeds: Annotated[list[CountOrZero], Field(min_length=2)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of every interval. Default 0.95."""
    beyond: list[Annotated[int, Field(ge=2, le=16)]] = Field(default=[])
    """Multiples of the trained length at which held-out loss is measured by position."""
    claims: dict[str, Claim] = Field(default={})
    comparisons: Annotated[list[Comparison], Field(min_length=1)]
    fit: Fitted | None = None
    times: Times = Times()
    quick: Quick | None = None

    @model_validator(mode="after")
    def _names_are_known(self) -> Study:
        if self.base not in self.variants:
            raise ValueError(f"base: there is no variant {self.base!r}")
        for number, one in enumerate(self.comparisons, start=1):
            where = f"comparison {number} ({one.measure} of {one.variant})"
            _known(one.claim, self.claims, f"{where}: claim")
            _known(one.variant, self.variants, f"{where}: variant")
            for size in one.sizes:
                _known(size, self.sizes, f"{where}: size")
            if one.variant == self.base:
                raise ValueError(f"{where}: this is the base, which everything is compared with")
            if one.measure == "loss_beyond" and not self.beyond:
                raise ValueError(f"{where}: set beyond to multiples of data.seq_len, such as [2, 4]")
        lists = {"rates.sizes": self.rates.sizes, "fit.sizes": self.fit.sizes if self.fit else []}
        for name, sizes in {**lists, "quick.sizes": self.quick.sizes if self.quick else []}.items():
            for size in sizes:
                _known(size, self.sizes, name)
        for name, values in self._lists():
            if len(set(values)) != len(values):
                raise ValueError(f"{name} = {list(values)} has something twice")
        for name, seeds in (("seeds", self.seeds), ("quick.seeds", self.quick.seeds if self.quick else [])):
            if both := set(seeds) & set(self.rates.seeds):
                text = f"seed {min(both)} is in rates.seeds and in {name}: a rate tuned on it would favour its variant"
                raise ValueError(f"{text}; take others")
        return self

    def _lists(self) -> Iterable[tuple[str, Sequence[Any]]]:
        yield from (("seeds", self.seeds), ("rates.grid", self.rates.grid), ("rates.seeds", self.rates.seeds))
        if self.fit:
            yield "fit.sizes", self.fit.sizes
        if self.quick:
            yield from (("quick.seeds", self.quick.seeds), ("quick.grid", self.quick.grid))

    def quickly(self) -> Study:
        """The study that ``--quick`` makes: fewer seeds, steps, rates and sizes; comparisons without a size are out.

        Raises:
            UserError: the file has no section quick.
        """
        if self.quick is None:
            raise UserError("this study has no section quick; run it without --quick")
        quick, kept = self.quick, []
        for one in self.comparisons:
            is_exact = one.measure in COUNTS
            sizes = one.sizes if is_exact else [size for size in one.sizes if size in quick.sizes]
            if sizes or not one.sizes:
                kept.append(one.model_copy(update={"sizes": sizes}))
        tuned = [size for size in self.rates.sizes if size in quick.sizes] or quick.sizes[:1]
        rates = self.rates.model_copy(update={"grid": quick.grid, "sizes": tuned, "seeds": self.rates.seeds[:1]})
        train = {**self.settings.get("train", {}), "steps": quick.steps}
        fitted = self.fit if self.fit and set(self.fit.sizes) <= set(quick.sizes) else None
        return self.model_copy(
            update={
                "settings": {**self.settings, "train": train},
                "seeds": quick.seeds,
                "rates": rates,
                "comparisons": kept,
                "fit": fitted,
                "times": self.times.model_copy(update={"rounds": quick.rounds}),
            }
        )

    def settings_of(self, variant: str, size: str, rate: float | None = None, seed: int = 0) -> Settings:
        """The settings of a run, with the d_ff that holds equal what the variant says.

        Raises:
            UserError: settings contradict each other, or nothing can be held equal.
        """
        own, where = self.variants[variant], f"variant {variant} at size {size}"
        settings = self._resolved(where, size, own.set)
        if own.hold != "nothing" and variant != self.base:
            base, length = self._resolved(where, size, {}), settings.data.seq_len
            if "model.d_ff" in own.set:
                raise UserError(f"{where}: model.d_ff is decided by hold: {own.hold}; leave one of them out")
            try:
                d_ff = equal_d_ff(settings.model, base.model, length, own.hold)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            settings = self._resolved(where, size, {**own.set, "model.d_ff": d_ff})
        train = settings.train.model_copy(update={"seed": seed})
        rates = {} if rate is None else {"learning_rate": rate}
        optimizer = settings.optimizer.model_copy(update=rates)
        return settings.model_copy(update={"train": train, "optimizer": optimizer})

    def _resolved(self, where: str, size: str, own: dict[str, Value]) -> Settings:
        groups = self.settings.items()
        common = {f"{section}.{name}": value for section, group in groups for name, value in group.items()}
        values = {**common, **self.sizes[size], **own}
        for name in values:
            if name not in SETTINGS and name.partition(".")[0] not in SETTINGS:
                raise UserError(f"{where}: {name} is not a study's to set; it may set {', '.join(SETTINGS)}")
        if "optimizer.learning_rate" in values:
            raise UserError(f"{where}: optimizer.learning_rate is tuned over rates.grid; leave it out")
        try:
            texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
            return load_settings(None, [f"{name}={text}" for name, text in texts.items()])[0]
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def read_study(path: Path) -> Study:
    """Reads and checks a study.

    Raises:
        UserError: names the file, the place and what is wrong.
    """
    path = expanded(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has more than 1 MB, and a study is a page of YAML")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no study {path}; those of the project are in yaml/studies/") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; a study is YAML text") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected the sections of a study ({', '.join(Study.model_fields)})")
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_first(error)}") from None
    try:
        for variant in study.variants:
            for size in sizes_of(study, variant):
                study.settings_of(variant, size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return study


def sizes_of(study: Study, variant: str) -> list[str]:
    """Sizes at which a variant takes part in anything, in the order of the file."""
    used = {size for one in study.comparisons if variant in (one.variant, study.base) for size in one.sizes}
    if variant == study.base and study.fit:
        used |= set(study.fit.sizes)
    return [size for size in study.sizes if size in used]


def _known(name: str, names: Iterable[str], where: str) -> None:
    if name not in names:
        raise ValueError(f"{where}: there is no {name!r}; there are {', '.join(names)}")


def _first(error: ValidationError) -> str:
    """The first thing that is wrong."""
    first = error.errors()[0]
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if first["type"] == "extra_forbidden":
        message = "a study has nothing of this name"
    return f"{place}: {message}" if place else message

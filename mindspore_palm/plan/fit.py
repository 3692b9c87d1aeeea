"""A machine fitted to a run: the efficiency at which the cost model predicts the step time that was measured.

One number is measured, the median step time, so one is fitted: a factor of both efficiencies, that of matmuls and that
of memory. Everything else is taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import yaml

from mindspore_palm.config import Settings
from mindspore_palm.cost.workload import Workload
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import METRICS
from mindspore_palm.plan.host import host_machine
from mindspore_palm.plan.machines import TERA, Machine
from mindspore_palm.plan.pipeline import Pipeline
from mindspore_palm.plan.search import check_fits
from mindspore_palm.plan.step_time import step_time

FEWEST = 10  # steps whose median is a measurement
LOWEST = 1e-9  # efficiency
HALVINGS = 200  # of the interval of the factor; it is then exact


@dataclass(frozen=True)
class MeasuredStep:
    """A step of a run."""

    sequences: int
    seconds: float
    peak: float
    """FLOP/s of one device that the run's MFU is relative to."""


@dataclass(frozen=True)
class MeasuredSize:
    """Steps of one batch size, without the first, which compiles."""

    sequences: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def middle(self) -> tuple[float, float]:
        """Between which half of the steps are."""
        low, _, high = quantiles(self.seconds, n=4)
        return low, high


@dataclass(frozen=True)
class Fit:
    """A machine that predicts a run."""

    machine: Machine
    factor: float
    """Of both efficiencies of the machine that was taken over."""
    fitted: MeasuredSize
    others: tuple[tuple[MeasuredSize, float], ...]
    """Other batch sizes of the run, which were not fitted, and the seconds that are predicted for each."""
    predicted: float
    """Seconds of a step of the fitted size."""


def fit(where: str, settings: Settings, steps: Sequence[MeasuredStep], base: Machine | None, bandwidth: float) -> Fit:
    """Fits a machine to the steps of a run.

    Args:
        where: the run, for messages.
        settings: of the run.
        steps: that it took.
        base: machine to take over; None for a CPU with the run's own peak.
        bandwidth: of this machine's memory, bytes/s; used without a base.

    Raises:
        UserError: there are too few steps, or no efficiency explains them.
    """
    devices = settings.parallel.devices
    if base is None and settings.train.device not in ("auto", "CPU"):
        raise UserError(
            f"{where}: trained with train.device = {settings.train.device}; name the machine whose other numbers are "
            "taken over, such as --machine a100"
        )
    if base is None and devices > 1:
        raise UserError(
            f"{where}: a step of {devices:,} devices does not show what of it was computing and what was sending; name "
            "the machine whose links are taken over, such as --machine a100, or take a run of one device"
        )
    sizes = measured_sizes(where, steps)
    last = next(size for size in sizes if size.sequences == steps[-1].sequences)
    if len(last.seconds) < FEWEST:
        raise UserError(
            f"{where}: {len(last.seconds)} steps of {last.sequences} sequences can be used, without the first, which "
            f"compiles; a fit takes at least {FEWEST}: train longer"
        )
    if base is None:
        peak = median(step.peak for step in steps)
        source = f"taken over from {where}: what its MFU is relative to"
        base = host_machine(peak, bandwidth, source, f"the CPU of {where}")
    check_fits(with_batch(settings, last.sequences), base)
    factor = _factor(where, settings, last, base)
    machine = scaled(base, factor, f"fitted: {last.median:.6g} s per step, the median of {where}, is predicted with it")
    others = tuple(
        (size, predicted_seconds(settings, size.sequences, machine))
        for size in sizes
        if size is not last and len(size.seconds) >= FEWEST
    )
    return Fit(machine, factor, last, others, predicted_seconds(settings, last.sequences, machine))


def measured_sizes(where: str, steps: Sequence[MeasuredStep]) -> list[MeasuredSize]:
    """The steps by batch size, without the first of each.

    Raises:
        UserError: there are none.
    """
    if not steps:
        raise UserError(f"{where}: {METRICS} has no step with a time; a machine is fitted to a run that has trained")
    sizes: dict[int, list[float]] = {}
    for step in steps:
        sizes.setdefault(step.sequences, []).append(step.seconds)
    return [MeasuredSize(sequences, tuple(seconds[1:])) for sequences, seconds in sizes.items()]


def with_batch(settings: Settings, sequences: int) -> Settings:
    """The settings with one batch size."""
    return settings.model_copy(update={"train": settings.train.model_copy(update={"batch_size": sequences})})


def predicted_seconds(settings: Settings, sequences: int, machine: Machine) -> float:
    """Seconds of a step with a batch size, as ``palm plan`` predicts them."""
    one = with_batch(settings, sequences)
    return step_time(Pipeline.of(one).apply(Workload.of(one, machine.target)), machine).seconds


def scaled(machine: Machine, factor: float, source: str = "") -> Machine:
    """The machine with both efficiencies multiplied by a factor."""
    names = ("matmul_efficiency", "memory_efficiency")
    sources = {**machine.sources, **dict.fromkeys(names, source)}
    return machine.model_copy(update={**{n: factor * getattr(machine, n) for n in names}, "sources": sources})


def _factor(where: str, settings: Settings, size: MeasuredSize, base: Machine) -> float:
    """The factor of both efficiencies at which the median is predicted.

    Raises:
        UserError: there is none.
    """
    high = 1 / max(base.matmul_efficiency, base.memory_efficiency)
    low, wanted = LOWEST, size.median
    fastest = predicted_seconds(settings, size.sequences, scaled(base, high))
    if wanted < fastest:
        raise UserError(
            f"{where}: a step took {wanted:.4g} s, and {base.title} needs {fastest:.4g} s at full efficiency: its peak "
            f"of {base.peak / TERA:.4g} TFLOP/s, its bandwidth or its links are too low; name another --machine"
        )
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if predicted_seconds(settings, size.sequences, scaled(base, middle)) > wanted:
            low = middle
        else:
            high = middle
    return high


def describe_fit(where: str, settings: Settings, result: Fit, base_name: str | None) -> str:
    """A machine file: what was fitted and how well it predicts as comments, then the machine as YAML."""
    machine, size = result.machine, result.fitted
    low, high = size.middle
    lines = [
        f"Fitted to {where}: {_measured(size)}, half of them from {_ms(low)} to {_ms(high)} ms",
        f"Predicted with this file: {_ms(result.predicted)} ms",
        f"Fitted: matmul_efficiency = {machine.matmul_efficiency:.4g} and memory_efficiency = "
        f"{machine.memory_efficiency:.4g}, both times {result.factor:.4g}; the rest is taken over from "
        + (f"the machine {base_name}" if base_name else "the run and from this machine"),
    ]
    if settings.parallel.devices > 1:
        lines.append(
            f"Assumed: the links of {base_name}, and that nothing is sent while a device computes; a run of "
            f"{settings.parallel.devices:,} devices does not tell sending from computing"
        )
    if not base_name and settings.train.device == "auto":
        lines.append("Assumed: train.device = auto was a CPU; for any other, name a --machine to take over")
    for other, seconds in result.others:
        error = seconds / other.median - 1
        lines.append(f"Not fitted: {_measured(other)}, predicted {_ms(seconds)} ms ({error:+.1%})")
    if not result.others:
        lines.append("The run has no other batch size to check the prediction with")
    values = machine.model_dump(mode="json", exclude_none=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    return "".join(f"# {line}\n" for line in lines) + text.rstrip("\n")


def _measured(size: MeasuredSize) -> str:
    return f"{len(size.seconds):,} steps of {size.sequences:,} sequences, median {_ms(size.median)} ms"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"

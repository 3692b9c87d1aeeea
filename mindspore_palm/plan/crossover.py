"""Where a pipeline overtakes meshes without one: fewer or more devices, slower links, smaller batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mindspore_palm.config import Settings
from mindspore_palm.errors import UserError
from mindspore_palm.plan.machines import Machine
from mindspore_palm.plan.search import Candidate, problem
from mindspore_palm.plan.search_pipelines import search_pipelines

SHARES = (1, 2, 4, 8)
"""Divisors of the devices, of the links' bandwidth and of the batch."""
LINKS = ("link_gb_s", "host_gb_s", "server_gb_s", "network_gb_s")


@dataclass(frozen=True)
class Crossing:
    """The best candidates of one case."""

    case: str
    plain: Candidate | None
    """Without a pipeline; None if none fits."""
    piped: Candidate | None
    """With one."""

    @property
    def gain(self) -> float | None:
        """Share of the step that the pipeline saves; negative if it takes longer."""
        if self.plain is None or self.piped is None:
            return None
        return 1 - self.piped.time.seconds / self.plain.time.seconds


def crossings(settings: Settings, machine: Machine, devices: int) -> list[Crossing]:
    """The run as it is, and with an eighth to a half of its devices, its links' bandwidth and its batch.

    Norms and residuals are sharded over model throughout, as that is never slower.

    Raises:
        UserError: nothing fits in any of the cases.
    """
    found = []
    for case, changed, slower, count in _cases(settings, machine, devices):
        plain, piped = (
            search_pipelines(changed, slower, count, problem, sharded=(True,), piped=only)[0] for only in (False, True)
        )
        found.append(Crossing(case, plain[0] if plain else None, piped[0] if piped else None))
    if not any(one.plain or one.piped for one in found):
        raise UserError(f"nothing fits {devices:,} devices or fewer of {machine.title}; take another --machine")
    return found


def _cases(settings: Settings, machine: Machine, devices: int) -> Iterator[tuple[str, Settings, Machine, int]]:
    """Name, settings, machine and devices of each case."""
    batch, pods = settings.train.batch_ramp()[-1][1], settings.parallel.pods
    settings = _with_batch(settings, batch)
    yield f"{devices:,} devices, {batch:,} sequences", settings, machine, devices
    for share in SHARES[1:]:
        if devices % share == 0 and devices // share % max(1, pods // share) == 0:
            parallel = settings.parallel.model_copy(update={"pods": max(1, pods // share)})
            fewer = settings.model_copy(update={"parallel": parallel})
            yield f"{devices // share:,} devices", fewer, machine, devices // share
    for share in SHARES[1:]:
        slower = {name: speed / share for name in LINKS if (speed := getattr(machine, name))}
        yield f"links at 1/{share} of their bandwidth", settings, machine.model_copy(update=slower), devices
    for share in SHARES[1:]:
        if batch % share == 0:
            yield f"{batch // share:,} sequences", _with_batch(settings, batch // share), machine, devices


def _with_batch(settings: Settings, batch: int) -> Settings:
    update = {"batch_size": batch, "micro_batch": 0}
    return settings.model_copy(update={"train": settings.train.model_copy(update=update)})

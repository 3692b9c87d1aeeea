"""The same training on many meshes: against one process, against JAX, and against JAX on the same mesh.

Every case trains the same network on the same batches (cases.py); workers are separate processes (worker.py). Without
an error, only the order of float32 sums differs: compare.py has the tolerances and the measured differences.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from parallel.cases import OPTIMIZERS, Case
from parallel.compare import TOLERANCES, differences, exceeded, relative
from parallel.runs import ONE, Runs, twins_of
from parallel.suite import (
    DEFAULT,
    DEFAULT_MUTANTS,
    DEPARTURES,
    GPT3,
    MESHES,
    MUTANT_OF_REDUCTIONS,
    MUTANTS,
    MUTANTS_OF_GPT3,
    MUTANTS_OF_PIPELINE,
    PIPELINE,
    PIPELINES,
    QUICK,
    QUICK_DEPARTURES,
    QUICK_PIPELINES,
    QUICK_REDUCTIONS,
    RECOMPUTE,
    REDUCTIONS,
    SLOW,
    distinct_shardings,
)

FAST = [*QUICK, *QUICK_DEPARTURES, *QUICK_PIPELINES, *QUICK_REDUCTIONS]
CASES = [pytest.param(case, id=case.name) for case in DEFAULT]
ON_REQUEST = [
    case for case in dict.fromkeys([*FAST, *SLOW, *DEPARTURES, *PIPELINES, *REDUCTIONS]) if case not in DEFAULT
]
CASES += [pytest.param(case, id=case.name, marks=pytest.mark.slow) for case in ON_REQUEST]
FAST_MUTANTS = [*MUTANTS, MUTANTS_OF_GPT3[0], MUTANTS_OF_PIPELINE[-1], MUTANT_OF_REDUCTIONS]
WITH_GRADIENTS = [param for param in CASES if param.values[0].gradients]


def with_twins(params):
    """Each case with each of its twins."""
    return [
        pytest.param(case, twin, id=f"{case.name}-{twin}", marks=param.marks)
        for param in params
        for case in param.values
        for twin in twins_of(case)
    ]


# Where each planted error must show, whatever else it changes.
SHOWS = {"no reduction": "gradient norm", "mean for sum": "gradient norm", "local rms": "loss"}
SHOWS |= {"micro-batch lost": "loss", "micro-batch twice": "loss", "no gradient from the logits": "gradient norm"}
SHOWS |= {"local means": "loss", "values with other heads": "loss"}


@pytest.fixture(scope="module")
def default(request, tmp_path_factory):
    """Of these cases, some have all of their tests in tests/extended.txt; no process runs what no test will ask for."""
    asked = {value for item in request.session.items if hasattr(item, "callspec") for value in cases_of(item)}
    healthy = {replace(case, mutation="", gradients=True) for case in asked}
    return Runs(tmp_path_factory.mktemp("default"), [c for c in [*DEFAULT, *DEFAULT_MUTANTS] if c in asked | healthy])


def cases_of(item):
    return [value for value in item.callspec.params.values() if isinstance(value, Case)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("quick"), [*FAST, *FAST_MUTANTS])


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("slow"), SLOW)


@pytest.fixture(scope="module")
def departures(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("departures"), [GPT3, *DEPARTURES, *MUTANTS_OF_GPT3[1:]])


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("pipelines"), [PIPELINE, *PIPELINES, *MUTANTS_OF_PIPELINE])


@pytest.fixture(scope="module")
def reductions(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("reductions"), REDUCTIONS)


@pytest.fixture
def runs(request, case: Case) -> Runs:
    if case in DEFAULT:
        return request.getfixturevalue("default")
    if case in FAST:
        return request.getfixturevalue("quick")
    if case in REDUCTIONS:
        return request.getfixturevalue("reductions")
    return request.getfixturevalue("pipelines" if case.stages > 1 else "slow" if case in SLOW else "departures")


@pytest.mark.parametrize("case", CASES)
def test_workers_hold_the_same_bits(runs, case):
    """All of them have the same losses and norms, and replicas of shards stay equal."""
    _, disagree = runs.of(case)
    assert not disagree


@pytest.mark.parametrize(("case", "twin"), with_twins(CASES))
def test_training_follows(runs, case, twin):
    """Ten steps: loss, cross-entropy and gradient norm of each, and the weights after the last."""
    far = differences(runs.of(case)[0], runs.twin(case, twin))
    assert {"loss", "gradient norm", "weights"} <= set(far)
    assert not exceeded(far), far


@pytest.mark.parametrize(("case", "twin"), with_twins(WITH_GRADIENTS))
def test_every_gradient_of_the_first_step(runs, case, twin):
    ours, theirs = runs.of(case)[0], runs.twin(case, twin)
    names = [name for name in ours if name.startswith("gradient/")]
    assert len(names) == sum(name.startswith("final/") for name in ours)
    far = {name: relative(ours[name], theirs[name]) for name in names}
    assert max(far.values()) <= TOLERANCES["gradients"], far


@pytest.mark.parametrize("case", WITH_GRADIENTS)
def test_initial_weights_are_the_same_bits_on_every_mesh(runs, case):
    ours, one = runs.of(case)[0], runs.twin(case, ONE)
    names = [name for name in one if name.startswith("initial/")]
    assert names
    for name in names:
        np.testing.assert_array_equal(ours[name], one[name], name)


def test_table_is_complete():
    """Every mesh has each kind of recomputation, and every distinct sharding, optimizer and number of micro-batches."""
    for mesh in MESHES:
        cases = [case for case in [*QUICK, *SLOW] if case.mesh == mesh]
        assert {case.recompute for case in cases} == set(RECOMPUTE)
        covered = {(case.shard_weights, case.optimizer, case.micro_batches) for case in cases}
        assert covered >= set(product(distinct_shardings(mesh), OPTIMIZERS, (1, 2)))


@pytest.mark.parametrize("mutant", DEFAULT_MUTANTS, ids=lambda case: case.mutation)
def test_planted_errors_are_seen(default, mutant):
    """By the comparison that passes in the same case without them."""
    check_that_it_shows(default, mutant)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", [case for case in FAST_MUTANTS if case not in DEFAULT_MUTANTS], ids=lambda case: case.mutation
)
def test_other_planted_errors_are_seen(quick, mutant):
    check_that_it_shows(quick, mutant)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS_OF_GPT3[1:], ids=lambda case: case.mutation)
def test_further_planted_errors_are_seen(departures, mutant):
    check_that_it_shows(departures, mutant)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS_OF_PIPELINE[:-1], ids=lambda case: case.mutation)
def test_planted_errors_in_pipelines_are_seen(pipelines, mutant):
    check_that_it_shows(pipelines, mutant)


def check_that_it_shows(runs, mutant):
    healthy = replace(mutant, mutation="", gradients=True)
    for twin in twins_of(mutant):
        assert not exceeded(differences(runs.of(healthy)[0], runs.twin(healthy, twin)))
        assert SHOWS[mutant.mutation] in exceeded(differences(runs.of(mutant)[0], runs.twin(mutant, twin)))

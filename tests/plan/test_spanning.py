"""Ways to use several pods: each by hand where it is simple, and the map of which wins where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mindspore_palm.cost.workload import Workload
from mindspore_palm.plan.crossover import crossings
from mindspore_palm.plan.machines import load_machine
from mindspore_palm.plan.pods import DISPATCH, host_bytes, one_pod, span
from mindspore_palm.plan.report_ways import answer, describe_crossings, describe_ways
from mindspore_palm.plan.spanning import ALL_LINKS, smallest_batch, ways
from mindspore_palm.plan.step_time import step_time
from mindspore_palm.settings import load_settings

YAML = Path(__file__).resolve().parents[2] / "yaml"
TPU_V4 = load_machine("tpu-v4")


@pytest.fixture(scope="module")
def palm():
    return one_pod(Workload.of(load_settings(YAML / "palm_540b.yaml")[0]))


@pytest.fixture(scope="module")
def grids(palm):
    return {
        work.batch: {(n, link): ways(work, TPU_V4, n, link) for n in (1, 2, 8) for link in (0.1, 1, 6.59)}
        for work in (palm, smallest_batch(palm))
    }


def test_one_pod_has_no_other_way(palm):
    one = ways(palm, TPU_V4, 1, 6.59)
    assert one.pipeline is one.both is one.turns is None
    assert one.spmd == one.programs == one.shared == one.alone == step_time(palm, TPU_V4).seconds


def test_data_parallel_is_that_of_the_other_table(palm):
    for pods, link in ((2, 1.0), (8, 6.59)):
        one, other = ways(palm, TPU_V4, pods, link), span(palm, TPU_V4, pods, link)
        assert (one.spmd, one.programs) == (other.spmd_overlap, other.pathways_overlap)


def test_pods_of_a_prime_number_cannot_be_both(palm):
    assert ways(palm, TPU_V4, 3, 6.59).both is None
    both = ways(palm, TPU_V4, 8, 6.59).both
    assert both.stages in (2, 4)


def test_a_pipeline_idles_for_its_bubble_on_links_that_cost_nothing(palm):
    """arXiv 2104.04473: (stages - 1) / (micro-batches * chunks) of a step; here also gathers of each micro-batch."""
    work = replace(palm, model=palm.model.model_copy(update={"layers": 120}))
    one = ways(work, TPU_V4, 4, 1e6)
    bubble = 3 / (one.pipeline.micro_batches * one.pipeline.interleave)
    assert one.efficiency(one.pipeline.seconds) <= 1 / (1 + bubble) + 0.05
    assert one.pipeline.seconds > one.alone


def test_a_controller_starts_a_program_per_stage_and_pass(palm):
    piped = ways(palm, TPU_V4, 2, 6.59).pipeline
    assert piped.programs == 2 * piped.micro_batches * piped.interleave * 2
    assert piped.dispatch == pytest.approx(piped.programs * DISPATCH * 3072)
    assert piped.controlled == max(piped.seconds, piped.dispatch)


def test_slower_links_favour_what_sends_less(palm):
    """A host sends 1.4 GB of gradients, or its chips' shards of activations, which are a tenth of that here."""
    small = smallest_batch(palm)
    sent = 2 * small.activation_bytes / 12 * 4  # two micro-batches, 4 chips per host, 12 shards
    assert sent < host_bytes(small, TPU_V4) / 10
    slow = ways(small, TPU_V4, 2, 0.1)
    assert slow.winner == "pipeline" and slow.spmd > 2 * slow.alone
    assert ways(small, TPU_V4, 2, 6.59).winner == "data"


def test_from_1_to_100_gb_per_second_data_parallel_wins_for_palm_on_any_number_of_pods(palm):
    for work in (palm, smallest_batch(palm)):
        for pods in (2, 4, 8):
            for link in (1, 10, 100):
                assert ways(work, TPU_V4, pods, link).winner == "data"


def test_several_models_lose_least_and_two_in_turns_fill_each_other_s_bubble(palm):
    one = ways(palm, TPU_V4, 8, 6.59)
    assert one.alone <= one.shared <= one.programs  # half of the gradients
    assert one.turns < one.pipeline.seconds


def test_the_map_the_table_and_the_answer(grids):
    text = describe_ways(grids, 6.59)
    assert "1,024 sequences per pod" in text and "256 sequences per pod" in text
    assert "P 67" in text and "D 100" in text  # 2 pods, 256 sequences: at 0.1 and 6.59 GB/s
    said = answer(grids, 6.59)
    assert "With 8 pods, 6.59 GB/s per host and 1,024" in said and "never in speed" in said
    assert "A pipeline wins up to 0.1 GB/s" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 118
    fast = {batch: {at: one for at, one in grid.items() if at[1] > 1} for batch, grid in grids.items()}
    assert "Data parallel is faster everywhere" in " ".join(answer(fast, 6.59).split())
    assert min(ALL_LINKS) == 0.1 and max(ALL_LINKS) == 100


def test_where_a_pipeline_overtakes():
    settings, _ = load_settings(YAML / "palm_8b.yaml", ["train.batch_size=64", "train.micro_batch=0"])
    found = crossings(settings, TPU_V4, 64)
    cases = [one.case for one in found]
    assert cases[0] == "64 devices, 64 sequences" and "32 devices" in cases and "16 sequences" in cases
    assert "links at 1/8 of their bandwidth" in cases
    for one in found:
        assert one.plain is None or one.plain.pipeline.stages == 1
        assert one.piped is None or one.piped.pipeline.stages > 1
    slower = {one.case: one.gain for one in found if "links" in one.case}
    assert slower["links at 1/8 of their bandwidth"] > slower["links at 1/2 of their bandwidth"]
    text = describe_crossings(found)
    assert "saved" in text and len(text.splitlines()) == len(found) + 1

"""Schedules of a pipeline compute each task once, in an order that ends, with the published bubbles and activations."""

from __future__ import annotations

from collections import Counter

import pytest

from mindspore_palm.errors import UserError
from mindspore_palm.plan.schedules import (
    BACKWARD,
    BOTH,
    FORWARD,
    SCHEDULES,
    WEIGHTS,
    Schedule,
    Task,
    gpipe,
    interleaved,
    make_schedule,
    one_f_one_b,
)
from mindspore_palm.plan.timeline import StageTimes, most_held, pipeline_seconds, play, played_sizes

SIZES = [(2, 8), (4, 8), (4, 12), (8, 16), (8, 24)]  # devices, micro-batches
TIMES = [(1.0, 1.0, 1.0), (1.0, 1.5, 0.75), (2.0, 2.0, 1.0)]  # forward, backward, weights of a device's stages


def played(name, devices, micro_batches, times, link=0.0):
    schedule = SCHEDULES[name](devices, micro_batches)
    parts = [time / schedule.chunks for time in times]
    return play(schedule, [StageTimes(*parts)] * schedule.stages, link)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("devices", "micro_batches"), SIZES)
def test_each_stage_computes_each_micro_batch_once(name, devices, micro_batches):
    schedule = SCHEDULES[name](devices, micro_batches)
    parts = {BOTH: (BACKWARD, WEIGHTS)}
    done = Counter(
        (kind, task.micro_batch, task.stage)
        for order in schedule.orders
        for task in order
        for kind in parts.get(task.kind, (task.kind,))
    )
    kinds, stages = (FORWARD, BACKWARD, WEIGHTS), range(schedule.stages)
    assert done == {(kind, i, stage): 1 for kind in kinds for i in range(micro_batches) for stage in stages}
    where = {(task.micro_batch, task.stage): set() for order in schedule.orders for task in order}
    for device, order in enumerate(schedule.orders):
        for task in order:
            where[task.micro_batch, task.stage].add(device)
    assert all(len(devices) == 1 for devices in where.values())  # activations stay where they are


BUBBLES = {  # p devices, f forward, b backward, w weights
    "gpipe": lambda p, f, b, w: (p - 1) * (f + b + w),
    "1f1b": lambda p, f, b, w: (p - 1) * (f + b + w),
    "interleaved 1f1b": lambda p, f, b, w: (p - 1) * (f + b + w) / 2,  # arXiv 2104.04473, 2 chunks
    "zb-h1": lambda p, f, b, w: (p - 1) * (f + b - w),  # arXiv 2401.10241, table 2
}


@pytest.mark.parametrize("name", BUBBLES)
@pytest.mark.parametrize(("devices", "micro_batches"), SIZES)
@pytest.mark.parametrize("times", TIMES)
def test_bubbles_are_those_of_the_papers(name, devices, micro_batches, times):
    timeline = played(name, devices, micro_batches, times)
    assert timeline.bubble == pytest.approx(BUBBLES[name](devices, *times))
    assert timeline.seconds == pytest.approx(micro_batches * sum(times) + timeline.bubble)


@pytest.mark.parametrize(("devices", "micro_batches"), SIZES)
def test_zb_v_has_no_bubble_if_all_tasks_take_the_same_time(devices, micro_batches):
    """arXiv 2405.15362: between the first task of a device and its last."""
    timeline = played("zb-v", devices, micro_batches, (1.0, 1.0, 1.0))
    assert [timeline.idle(device) for device in range(devices)] == [0.0] * devices


@pytest.mark.parametrize(("devices", "micro_batches"), SIZES)
@pytest.mark.parametrize("times", TIMES)
def test_dualpipe_s_bubble_is_at_most_the_published_one(devices, micro_batches, times):
    """arXiv 2412.19437, table 2, where a forward and a backward pass that overlap start and end together."""
    f, b, w = times
    published = (devices / 2 - 1) * ((f + b + w) + (b + w) - 3 * w)
    bubble = played("dualpipe", devices, micro_batches, times).bubble
    assert bubble <= published + 1e-9
    assert bubble >= published / 2


HELD = {  # micro-batches by device, of p devices and m micro-batches
    "gpipe": lambda p, m: [m] * p,
    "1f1b": lambda p, m: list(range(p, 0, -1)),
    "interleaved 1f1b": lambda p, m: [p + (p - 1) / 2 - device for device in range(p)],  # the first: 2205.05198
    "zb-h1": lambda p, m: [p] * p,
    "zb-v": lambda p, m: [p] * p,
    "dualpipe": lambda p, m: [p + 1] * p,
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize(("devices", "micro_batches"), SIZES)
def test_devices_hold_the_published_activations(name, devices, micro_batches):
    timeline = played(name, devices, micro_batches, (1.0, 1.0, 1.0))
    assert [timeline.held(device) for device in range(devices)] == HELD[name](devices, micro_batches)


def test_a_timeline_that_is_small_enough_to_draw():
    """1F1B on two devices: forward 1, backward 2, weights 1, and half a unit to the other device."""
    timeline = play(one_f_one_b(2, 2), [StageTimes(1, 2, 1)] * 2, link=0.5)
    first, last = timeline.spans
    assert first == (
        (Task(FORWARD, 0, 0), 0, 1),
        (Task(FORWARD, 1, 0), 1, 2),
        (Task(BOTH, 0, 0), 6, 9),
        (Task(BOTH, 1, 0), 10, 13),
    )
    assert last == (
        (Task(FORWARD, 0, 1), 1.5, 2.5),
        (Task(BOTH, 0, 1), 2.5, 5.5),
        (Task(FORWARD, 1, 1), 5.5, 6.5),
        (Task(BOTH, 1, 1), 6.5, 9.5),
    )
    assert (timeline.seconds, timeline.busy(0), timeline.bubble, timeline.idle(1)) == (13, 8, 5, 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_slowest_stage_sets_the_pace(name):
    """With many micro-batches, a step takes what the slowest device computes, and a bubble that does not grow."""
    fast, slow = StageTimes(1, 1, 1), StageTimes(2, 2, 2)
    bubbles = []
    for micro_batches in (32, 64):
        schedule = SCHEDULES[name](4, micro_batches)
        times = [fast] * (schedule.stages - 1) + [slow]
        timeline = play(schedule, times)
        bubbles.append(timeline.bubble)
    assert bubbles[1] == pytest.approx(bubbles[0], abs=1e-9) or name == "dualpipe"


def test_devices_that_wait_for_each_other_are_found():
    backward_first = Schedule("wrong", 2, ([Task(BOTH, 0, 0), Task(FORWARD, 0, 0)], [Task(FORWARD, 0, 1)]))
    with pytest.raises(ValueError, match=r"wrong: devices \[0, 1\] wait for each other"):
        play(backward_first, [StageTimes(1, 1, 1)] * 2)


def test_one_f_one_b_with_fewer_micro_batches_than_devices():
    timeline = play(one_f_one_b(8, 3), [StageTimes(1, 1, 1)] * 8)
    assert timeline.bubble == 7 * 3 and [timeline.held(device) for device in (0, 7)] == [3, 1]
    assert play(gpipe(8, 3), [StageTimes(1, 1, 1)] * 8).bubble == 7 * 3


def test_more_chunks_make_smaller_bubbles():
    for chunks in (2, 3, 4):
        timeline = play(interleaved(4, 8, chunks), [StageTimes(1 / chunks, 1 / chunks, 1 / chunks)] * 4 * chunks)
        assert timeline.bubble == pytest.approx(3 * 3 / chunks)
        assert timeline.held(0) == pytest.approx(4 + 3 / chunks)


ENDS = {  # stages as in a language model: the first and the last have more to do
    "equal": lambda stages: [StageTimes(1, 1, 1)] * stages,
    "logits": lambda stages: (
        [StageTimes(1, 1.2, 0.9)] + [StageTimes(1, 1.1, 0.8)] * (stages - 2) + [StageTimes(1.3, 2, 1)]
    ),
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize(("devices", "micro_batches"), [(2, 40), (4, 66), (4, 64), (8, 160)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_long_step_is_extrapolated_to_what_playing_all_of_it_gives(name, devices, micro_batches, ends):
    chunks = SCHEDULES[name](devices, 4 * devices).chunks
    if name.startswith("interleaved") and micro_batches % devices:
        with pytest.raises(UserError, match="do not divide by"):
            make_schedule(name, devices, micro_batches, chunks)
        return
    times = ENDS[ends](devices * chunks)
    schedule = make_schedule(name, devices, micro_batches, chunks)
    seconds = pipeline_seconds(name, devices, chunks, micro_batches, times, link=0.05)
    assert max(played_sizes(devices, micro_batches)) < micro_batches
    assert seconds == pytest.approx(play(schedule, times, link=0.05).seconds, rel=1e-9)
    held = [schedule.held(device) for device in range(devices)]
    assert most_held(name, devices, chunks, micro_batches) == pytest.approx(held)


def test_a_schedule_by_name():
    assert make_schedule("1f1b", 4, 8, 2).name == "interleaved 1f1b"
    with pytest.raises(UserError, match="no schedule is called '1b1f'; the schedules are gpipe, 1f1b"):
        make_schedule("1b1f", 4, 8)
    with pytest.raises(UserError, match="zb-v has 2 chunks per device, not 1"):
        make_schedule("zb-v", 4, 8)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("interleaved 1f1b", (4, 6), "6 micro-batches do not divide by 4 devices, .* take 8"),
        ("zb-v", (4, 6), "6 micro-batches are too few for 4 devices; take 7"),
        ("dualpipe", (3, 12), "must both be even"),
        ("dualpipe", (4, 6), "at least twice the devices"),
    ],
)
def test_sizes_that_a_schedule_cannot_have_are_a_sentence(name, sizes, words):
    with pytest.raises(UserError, match=words):
        SCHEDULES[name](*sizes)

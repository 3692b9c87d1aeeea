"""Memory of a process that trains on one CPU: MindSpore's, and what a step takes by the path that computes it."""

from __future__ import annotations

from math import prod

import pytest

from mindspore_palm.config import Settings
from mindspore_palm.cost import memory
from mindspore_palm.cost.memory import memory_by_kind, run_memory
from mindspore_palm.cost.process import MINDSPORE, InCpp, in_cpp, process_by_kind
from mindspore_palm.errors import UserError
from mindspore_palm.model import fused as model_in_cpp
from mindspore_palm.parallel import fused
from mindspore_palm.parallel.check import layout_of

SIZES = {"layers": 3, "d_model": 20, "heads": 2, "head_dim": 6, "d_ff": 40, "vocab_size": 50}
TOKENS, LENGTH = 32, 8
ALL = InCpp(blocks=True, loss=True, update=True)


def settings_with(**sections):
    sizes = {"model": SIZES, "data": {"seq_len": LENGTH}, "train": {"batch_size": TOKENS // LENGTH}}
    return Settings.model_validate({**sizes, **sections})


@pytest.fixture
def with_cpp(monkeypatch):
    monkeypatch.setattr(fused, "library", lambda: "some library")
    monkeypatch.delenv(fused.SWITCH, raising=False)


def test_a_block_in_cpp_saves_what_its_function_writes():
    q_wi, kv, o_wo = 2 * 6 + 2 * 40, 2 * 6, 2 * 6 + 40
    shapes = model_in_cpp._forward([TOKENS, 20], [20], [20, q_wi], [20, kv], [o_wo, 20], [1, LENGTH, 1, 6 // 2])
    assert memory_by_kind(settings_with(), parts=ALL)["activations"] == 3 * 4 * sum(map(prod, shapes))


@pytest.mark.parametrize(("table", "part"), [(50, 50), (6000, 4096)])
def test_temporaries_in_cpp_are_the_logits_and_the_functions_buffers(table, part):
    """Of a large table, the gradient of the logits is computed in parts."""
    columns = (2 * 6 + 2 * 40) + 2 * 6 + (2 * 6 + 40)
    packed, gradients, keys = 20 * columns, TOKENS * columns, TOKENS * 6 * (4 + 2 * 2)
    of_part = TOKENS * part + 20 * part + 2 * TOKENS * 20
    expected = 4 * (TOKENS * table + of_part + packed + gradients + keys)
    network = {**SIZES, "vocab_size": table}
    assert memory_by_kind(settings_with(model=network), parts=ALL)["temporaries"] == expected


def test_adafactors_update_takes_nothing_in_cpp():
    tiny = settings_with(data={"seq_len": 2}, train={"batch_size": 1})
    by_ops, in_functions = (memory_by_kind(tiny, parts=InCpp(update=there)) for there in (False, True))
    assert by_ops["temporaries"] == by_ops["weights"] > in_functions["temporaries"]


def test_index_tables_by_hand():
    mask = TOKENS * LENGTH * 2 * 3 // 4
    rotation = 4 * TOKENS * (2 + 1) * 3  # cosines and sines of both halves, of two heads of queries and one of keys
    norm = 2 * TOKENS * 20
    blocks = 3 * (2 * (mask + rotation + norm) + rotation)  # those of an evaluation have no backward pass
    loss = 3 * TOKENS * 50
    assert process_by_kind(settings_with(), TOKENS, InCpp())["index tables"] == 16 * (blocks + loss)
    assert process_by_kind(settings_with(), TOKENS, InCpp(loss=True))["index tables"] == 16 * blocks
    assert "index tables" not in process_by_kind(settings_with(), TOKENS, ALL)
    padded = settings_with(model={**SIZES, "vocab_multiple": 16})  # 64 rows; they are masked in both forward passes
    assert process_by_kind(padded, TOKENS, InCpp())["index tables"] == 16 * (blocks + 5 * TOKENS * 64)


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({}, ALL),
        ({"optimizer": {"name": "lion"}}, InCpp(True, True, False)),
        ({"optimizer": {"factored": True}}, InCpp(True, True, False)),
        ({"finetune": {"checkpoint": "runs/some", "dropout": 0.1}}, InCpp(False, True, True)),
        ({"model": {**SIZES, "block": "serial"}}, InCpp(False, True, True)),
        ({"parallel": {"recompute": "block"}}, InCpp()),
        ({"parallel": {"data": 2}}, InCpp()),
    ],
)
def test_the_estimate_follows_the_path(with_cpp, sections, parts):
    settings = settings_with(**sections)
    assert in_cpp(settings, layout_of(settings)) == parts


def test_the_switch_and_a_machine_without_a_compiler_leave_all_to_mindspore(with_cpp, monkeypatch):
    settings = settings_with()
    monkeypatch.setenv(fused.SWITCH, "0")
    assert in_cpp(settings, layout_of(settings)) == InCpp()
    monkeypatch.delenv(fused.SWITCH)
    monkeypatch.setattr(fused, "library", lambda: None)
    assert in_cpp(settings, layout_of(settings)) == InCpp()


def test_only_a_process_that_trains_alone_on_a_cpu_has_mindspores_memory(with_cpp):
    settings = settings_with()
    alone = run_memory(settings, layout_of(settings))
    assert MINDSPORE < alone["MindSpore"] < 1.1 * MINDSPORE
    workers = settings_with(parallel={"data": 2})
    for others in (layout_of(settings, "Ascend", planned=True), layout_of(settings, "GPU", planned=True)):
        assert run_memory(settings, others) == memory_by_kind(settings, others)
    assert run_memory(workers, layout_of(workers)) == memory_by_kind(workers, layout_of(workers))


def test_what_the_process_holds_already_is_not_asked_for_twice(with_cpp, monkeypatch):
    settings, needed = settings_with(), sum(run_memory(settings_with(), layout_of(settings_with())).values())
    monkeypatch.setattr(memory, "resident_memory", lambda: 200_000_000)
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 200_000_000)
    memory.check_memory(settings)
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 200_000_001)
    with pytest.raises(UserError, match=r"MindSpore: 56\d MB"):
        memory.check_memory(settings)

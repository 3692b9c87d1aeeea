"""Dry runs: the graph of one rank of thousands, extrapolation from few layers, and refusals."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import subprocess
import sys
from collections import Counter
from math import prod
from pathlib import Path

import pytest
from plan.small import SMALL, small

from mindspore_palm.config import OptimizerConfig, Settings
from mindspore_palm.cost.memory import memory_by_kind
from mindspore_palm.dry_run import compile as module
from mindspore_palm.dry_run.compile import dry_run, extrapolated
from mindspore_palm.dry_run.graph import Node, is_complete, longest_chain
from mindspore_palm.dry_run.ledger import BYTES, per_layer, show_axes
from mindspore_palm.dry_run.refusal import explain
from mindspore_palm.errors import UserError
from mindspore_palm.model.weights import placements
from mindspore_palm.parallel.check import layout_of
from mindspore_palm.plan.machines import load_machine
from mindspore_palm.plan.search import search
from mindspore_palm.settings import load_settings

YAML = Path(__file__).resolve().parents[2] / "yaml"


@pytest.fixture(scope="module")
def few(device):
    return dry_run(small(2)), dry_run(small(3))


def test_few_layers_give_the_ledger_of_many(few):
    five, by_rule = dry_run(small(5)), extrapolated(*few, 5)
    assert by_rule.ledger == five.ledger
    assert sorted(by_rule.shards, key=str) == sorted(five.shards, key=str)
    assert sum(five.ledger.chain.values()) > sum(few[0].ledger.chain.values())
    assert (by_rule.layers, by_rule.compiled) == (5, (2, 3))


def test_a_graph_that_was_compiled_before_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("MINDSPORE_PALM_GRAPHS", str(tmp_path))
    calls = []

    def pretend(settings, target, rank):
        calls.append((settings.model.layers, target, rank))
        return f"graph of {calls[-1]}", len(calls)

    monkeypatch.setattr(module, "_compiled_in_child", pretend)
    asked = [(2, "GPU", 0), (3, "GPU", 0), (2, "Ascend", 0), (2, "GPU", 1)]
    first = [module.partitioned_graph(small(layers), *others) for layers, *others in asked]
    assert calls == asked
    assert [module.partitioned_graph(small(layers), *others) for layers, *others in asked] == first
    assert calls == asked
    for path in tmp_path.glob("*.graph"):
        path.write_bytes(path.read_bytes()[:-1])
    module.partitioned_graph(small(2), "GPU", 0)
    monkeypatch.setenv("MINDSPORE_PALM_GRAPHS", "off")
    module.partitioned_graph(small(3), "GPU", 0)
    assert calls == [*asked, asked[0], asked[1]]


def test_shards_are_those_that_were_planned(few):
    settings = small(3)
    planned = {p.name: p.shard_shape for p in placements(settings.model, layout_of(settings, "GPU", planned=True))}
    compiled = {s.name: s.shape for s in few[1].shards}
    for name, shape in planned.items():
        assert compiled[name] == compiled[f"m.{name}"] == compiled[f"v.{name}"] == shape
    assert len(compiled) == 3 * len(planned)
    assert few[1].state_bytes() == 3 * 4 * sum(map(prod, planned.values()))


def test_the_moment_of_lion_is_sharded_as_its_weight(few):
    settings = small(2).model_copy(update={"optimizer": OptimizerConfig(name="lion")})
    run = dry_run(settings)
    shapes = {s.name: s.shape for s in run.shards}
    weights = {p.name for p in placements(settings.model, layout_of(settings, "GPU", planned=True))}
    assert set(shapes) == weights | {f"m.{name}" for name in weights}
    assert all(shapes[f"m.{name}"] == shapes[name] for name in weights)
    memory = memory_by_kind(settings, layout_of(settings, "GPU", planned=True))
    assert run.state_bytes() == memory["weights"] + memory["optimizer state"]
    update = Counter({k.given: n for k, n in run.ledger.counts.items() if k.part == "update"})
    assert update == {(): 1}  # the norm of all gradients; the update itself needs no collective


@pytest.mark.slow
def test_the_means_of_the_factored_adafactor_are_reduced_together(device):
    """Of the standard Transformer, whose weights are compiled as planned; every device stores the means in full."""
    switches = {"block": "serial", "attention": "multi_head", "mlp": "gelu", "norm": "layer_norm"}
    sections = {**SMALL, "model": {**SMALL["model"], **switches, "layers": 2}, "optimizer": {"factored": True}}
    settings = Settings.model_validate(sections)
    run, layout = dry_run(settings), layout_of(settings, "GPU", planned=True)
    shapes = {s.name: s.shape for s in run.shards}
    weights = placements(settings.model, layout)
    assert all(shapes[p.name] == shapes[f"m.{p.name}"] == p.shard_shape for p in weights)
    matrices = [p for p in weights if len(p.shape) == 2]
    assert all((shapes[f"v.{p.name}"], shapes[f"v_column.{p.name}"]) == (p.shape[:1], p.shape[1:]) for p in matrices)
    memory, scalars = memory_by_kind(settings, layout), len(weights) - len(matrices)  # a v_column that nobody reads
    assert run.state_bytes() == memory["weights"] + memory["optimizer state"] + 4 * scalars
    update = Counter({k.given: n for k, n in run.ledger.counts.items() if k.part == "update"})
    # the norm of all gradients, the means of all matrices, and the root mean squares of weights and of updates
    assert update == {(): 1, (sum(map(sum, (p.shape for p in matrices))),): 1, (len(weights),): 2}


def test_the_state_is_as_large_as_the_memory_estimate(few):
    settings = small(3)
    memory = memory_by_kind(settings, layout_of(settings, "GPU", planned=True))
    assert few[1].state_bytes() == memory["weights"] + memory["optimizer state"]


def test_the_chain_goes_through_every_layer_both_ways(few):
    # a layer's all-reduce over model waits for the layer before it, and its gradient's for the layer after it
    added = per_layer(few[0].ledger, few[1].ledger).chain
    over_model = Counter({k.part: n for k, n in added.items() if k.axes == "model" and k.op == "all-reduce"})
    assert over_model == {"forward": 1, "backward": 1}


def test_the_default_compiles_few(device, few, monkeypatch):
    compiled = []

    def pretend(settings, target, rank, _micro_batches):
        compiled.append(settings.model.layers)
        return few[len(compiled) - 1]

    monkeypatch.setattr(module, "_compiled", pretend)
    run = dry_run(small(118), all_layers=False)
    assert compiled == [2, 3] and run.layers == 118
    assert len([s for s in run.shards if s.name.endswith("kv")]) == 3 * 118


def test_the_last_rank_of_palm_540b(device):
    # MindSpore's Python refuses ranks above 4095; its compiler does not
    settings, _ = load_settings(YAML / "palm_540b.yaml", ["model.layers=1"])
    run = dry_run(settings, rank=6143)
    shapes = {s.name: s.shape for s in run.shards}
    assert shapes["blocks.0.q_wi"] == (72, 13312) and shapes["v.embedding"] == (84, 18432)
    assert {k.axes for k in run.ledger.counts if k.weight == "q_wi"} == {"data", "pod"}


def test_palm_540b_for_ascend(device):
    settings, _ = load_settings(YAML / "palm_540b_ascend.yaml", ["model.layers=1"])
    run = dry_run(settings, "Ascend", rank=17)
    shapes = {s.name: s.shape for s in run.shards}
    assert shapes["blocks.0.q_wi"] == (18432 // 192, 159744 // 16)
    assert shapes["embedding"] == (258048 // 16 // 192, 18432)
    sums = {
        (k.part, k.result) for k in run.ledger.counts if k.axes == "model" and k.op == "all-reduce" and k.bytes > 1e8
    }
    assert sums >= {("forward", (5 * 2048, 18432)), ("backward", (5 * 2048, 18432))}  # 1,920 sequences over 384


def test_float32_and_bfloat16_differ_only_in_bytes(few):
    def gathering(run):
        return next(k for k in run.ledger.counts if k.op == "all-gather" and k.weight == "q_wi" and k.part == "forward")

    settings = small(2)
    train = settings.train.model_copy(update={"compute_dtype": "float32"})
    full, half = gathering(dry_run(settings.model_copy(update={"train": train}))), gathering(few[0])
    assert (full.bytes, full.result) == (2 * half.bytes, half.result)


def test_adafactor_reduces_twice_for_all_weights(few):
    # root mean squares of weights and of updates: two vectors, and a scalar for the norm of all gradients
    update = Counter({k.given: n for k, n in few[1].ledger.counts.items() if k.part == "update"})
    assert update == {(1 + 4 * 3,): 2, (): 1}


@pytest.mark.slow
def test_all_layers_of_palm_540b(device):
    settings, _ = load_settings(YAML / "palm_540b.yaml")
    full, by_rule = dry_run(settings, all_layers=True), dry_run(settings, all_layers=False)
    print(f"118 layers in {full.seconds:.0f} s and {full.memory / 1e9:.1f} GB; by rule {by_rule.seconds:.0f} s")
    assert full.ledger == by_rule.ledger
    assert sorted(full.shards, key=str) == sorted(by_rule.shards, key=str)
    assert full.compiled == (118,)


@pytest.mark.slow
def test_the_answer_comes_within_a_minute_and_three_gigabytes(device):
    run = dry_run(load_settings(YAML / "palm_540b.yaml")[0], all_layers=False)
    assert run.seconds < 60 and run.memory < 3e9


def test_a_rank_that_is_not_there(device):
    with pytest.raises(UserError, match=r"--rank 16 is not one of 16 devices"):
        dry_run(small(2), rank=16)


def test_a_refusal_of_mindspore_is_a_sentence_with_its_own_words(device, monkeypatch):
    monkeypatch.setattr(module, "check_layout", lambda *_: None)  # as if our own checks had missed it
    settings = Settings.model_validate({**SMALL, "model": {**SMALL["model"], "layers": 1, "vocab_size": 131}})
    with pytest.raises(UserError) as refused:
        dry_run(settings)
    sentence, words = str(refused.value).split("\n")
    assert "a vocabulary of 131 cannot be sharded into parallel.model = 2 equal parts" in sentence
    assert "model.vocab_size or model.vocab_multiple" in sentence
    assert "MindSpore: " in words and "cannot be divisible by strategy value 2" in words


SAMPLED = int(os.environ.get("FINDER_MESHES", "2"))


@pytest.mark.parametrize(
    ("machine", "devices", "sample"),
    [
        ("tpu-v4", 8, SAMPLED),
        *[
            pytest.param(machine, devices, 6, marks=pytest.mark.slow)
            for machine in ("a100", "ascend-910b")
            for devices in (2, 4, 16, 24, 48)
        ],
    ],
)
def test_meshes_that_a_search_prints_are_compiled_by_the_dry_run(device, machine, devices, sample):
    """Odd sizes: a vocabulary that must be padded, twelve heads, and micro-batches."""
    sizes = {"layers": 1, "d_model": 96, "heads": 12, "head_dim": 4, "d_ff": 96, "vocab_size": 301}
    settings = Settings.model_validate(
        {"model": sizes, "data": {"seq_len": 16}, "train": {"batch_size": 48}, "parallel": {"shard_weights": "off"}}
    )
    machine = load_machine(machine)
    candidates = search(settings, machine, devices)
    for candidate in random.Random(devices).sample(candidates, min(sample, len(candidates))):
        assert dry_run(candidate.settings, machine.target).layers == 1


def test_a_group_that_ascend_does_not_have():
    settings, _ = load_settings(YAML / "palm_540b.yaml")
    ranks = ", ".join(f"[{i}]:{{{i}}}" for i in range(12))
    log = f"[ERROR] PARALLEL(1,a):now [x.cc:477] CreateGroup] failed, the rank list is: [const vector]{{{ranks}}}\n"
    sentence = explain(log, settings, layout_of(settings, "Ascend", planned=True)).splitlines()[0]
    assert "no group of the ranks 0, 1 ... 11, which parallel.model = 12 asks for" in sentence


def test_the_longest_chain():
    def node(graph, number, op, *needs):
        return Node(graph, number, "", op, needs, "", "", "")

    nodes = [
        node(0, 0, "A"),
        node(0, 1, "B", 0),
        node(0, 2, "A", 1),
        node(0, 3, "A", 0),
        node(1, 0, "A"),
        node(1, 1, "A", 0),
    ]
    weights = {(n.graph, n.number): 1.0 for n in nodes if n.op == "A"}
    assert longest_chain(nodes, weights) == [(0, 0), (0, 2), (1, 0), (1, 1)]


def test_json_has_everything(few, tmp_path):
    from mindspore_palm.dry_run.report import describe_dry_run, write_dry_run

    run, settings = few[0], small(2)
    write_dry_run(run, settings, "GPU", 0, tmp_path / "run.json")
    written = json.loads((tmp_path / "run.json").read_text())
    assert sum(s["bytes"] for s in written["slices"]) == written["state_bytes"] == run.state_bytes()
    assert sum(c["count"] for c in written["collectives"]) == sum(run.ledger.counts.values())
    assert written["mesh"] == {"stage": 1, "pod": 2, "data": 4, "model": 2} and written["target"] == "GPU"
    assert sum(c["count"] for c in written["longest_chain"]) == sum(run.ledger.chain.values()) > 0
    assert (written["seconds"], written["memory_bytes"]) == (run.seconds, run.memory) and run.seconds > 0 < run.memory
    text = describe_dry_run(run, settings, "GPU", 0)
    assert "rank 0 of 16" in text and show_axes(run.ledger.counts) in text
    assert all(
        c["bytes"] == BYTES[c["dtype"]] * max(prod(c["given"]), prod(c["result"])) for c in written["collectives"]
    )


TEXT = """# IR entry: @1_step
# Total subgraphs: 2

subgraph @1_step() {
  Return(%1)
}


subgraph @2_✓update() {
  Return(%1)
}
"""


def test_a_graph_that_is_cut_short_is_noticed():
    assert is_complete(TEXT) and is_complete(TEXT + "\n\n")
    assert not any(is_complete(TEXT[:length]) for length in range(len(TEXT.rstrip())))


def run_small(folder, enter=None, **environment):
    sections = small(1).model_dump(include={section: set(group) for section, group in SMALL.items()})
    overrides = [f"{section}.{name}={value}" for section, group in sections.items() for name, value in group.items()]
    return subprocess.run(
        [sys.executable, str(YAML.parent / "run" / "dry_run.py"), *overrides, "--whole"],
        env={**os.environ, "TMPDIR": str(folder), **environment},
        preexec_fn=enter,
        capture_output=True,
        encoding="utf-8",
    )


def test_the_locale_is_not_the_encoding_of_a_graph(tmp_path):
    done = run_small(tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr


def test_a_graph_that_cannot_be_written_in_full_is_refused(tmp_path):
    done = run_small(tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    assert done.returncode == 2
    assert re.fullmatch(rf"error: MindSpore could not write its graph to {tmp_path} in full: .*\n", done.stderr)

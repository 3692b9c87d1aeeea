"""Profiles of steps: ops belong to their parts, the tables add up, the trace opens, and bits stay the same."""

import json
import math
import os
import re

import mindspore as ms
import numpy as np
import pytest
from checkpoints.in_process import trainer, write_text

from mindspore_palm.checkpoint.format import Checkpoint
from mindspore_palm.errors import UserError
from mindspore_palm.graph_cache.store import SWITCH
from mindspore_palm.launch.process import once_done
from mindspore_palm.parallel import fused
from mindspore_palm.train.log.metrics import read_rows
from mindspore_palm.train.log.op_times import (
    ALL_PARTS,
    BLOCKS,
    UNEMBED,
    OpRun,
    busy_seconds,
    in_backward,
    read_op_times,
)
from mindspore_palm.train.log.step_profile import StepProfile, StepTimes, describe_profile, write_trace
from mindspore_palm.train.profile_options import ProfileOptions, check_profile, parse_profile

LOSS = "Default/objective-Objective/loss-Loss"
PALM = f"{LOSS}/palm-PaLM"
BLOCK = f"{PALM}/blocks-CellList/0-Block"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"{PALM}/embed-Embed/lookup-Lookup/Gather-op0", "embedding"),
        (f"{BLOCK}/norm-RMSNorm/Rsqrt-op1", "norms"),
        (f"{BLOCK}/project_in-ProjectIn/matmul-MatmulThenSplit/MatMul-op2", "projections"),
        (f"{BLOCK}/attention-MultiQueryAttention/rotate_k-Rope/Mul-op3", "attention"),
        ("Expand/_SoftmaxBackward/Mul-op3", "attention"),
        (f"{BLOCK}/swiglu-SwiGLU/Sigmoid-op0", "mlp"),
        (f"{BLOCK}/residual-Residual/Add-op3", "rest of the blocks"),
        (f"{LOSS}/unembed_loss-UnembedLoss/unembed-Unembed/norm-RMSNorm/Mul-op3", "logits"),
        ("Default/objective-Objective/loss-Loss/unembed_loss-UnembedLoss/token_loss-TokenLoss/Mul-op1", "loss"),
        ("Default/update-Update/norm-GlobalNorm/ReduceSum-op2", "gradient norm and clipping"),
        ("Default/update-Update/optimizer-Adafactor/Assign-op9", "optimizer"),
        ("Expand/_SplitWithSize/Slice-op3", "ops without a Cell"),
        (f"{BLOCK}/project_out-ProjectOut/AllReduce-op1", "collectives"),
    ],
)
def test_an_op_belongs_to_the_part_of_its_cells(name, part):
    run = OpRun(name, 0.0, 1.0)
    assert run.part(vocab=300) == part and part in ALL_PARTS
    assert re.fullmatch(r"[A-Z]\w+", run.type)


@pytest.mark.parametrize(
    ("name", "shapes", "part", "backward"),
    [
        (f"{PALM}/blocks-CellList/0-FusedBlock/compute-BlockFunction/Custom-op0", ((64, 32), (32,)), BLOCKS, False),
        ("Default/Custom-op2", ((64, 32), (32,)), BLOCKS, True),
        (f"{LOSS}/unembed_loss-FusedUnembedLoss/compute-UnembedFunction/Custom-op0", ((64, 32), (32,)), UNEMBED, False),
        (f"{LOSS}/unembed_loss-FusedUnembedLoss/compute-UnembedFunction/Custom-op1", ((64,), (64, 32)), UNEMBED, True),
        ("Default/Custom-op4", ((), (), (1,), (8,), (300, 32)), "optimizer", False),
    ],
)
def test_an_op_in_cpp_belongs_to_a_part_and_a_pass(name, shapes, part, backward):
    run = OpRun(name, 0.0, 1.0, 0, shapes)
    assert run.part(vocab=300) == part and part in ALL_PARTS
    assert in_backward([run]) == [backward]


@pytest.mark.parametrize(
    ("name", "shapes", "part"),
    [
        ("project_kv-ProjectKv/Grad_MatMul/MatMul-op1", ((64, 300), (300, 16)), "logits"),
        ("unembed-Unembed/Grad_MatMul/MatMul-op1", ((64, 32), (32, 16)), "projections"),
        ("token_loss-TokenLoss/Grad_Mul/Mul-op1", ((64, 300), (64, 1)), "loss"),
        ("token_loss-TokenLoss/Grad_Mul/Mul-op2", ((64, 32), (64, 32)), "gradients of elementwise ops"),
        ("attention-A/Grad_BatchMatMul/BatchMatMul-op2", ((4, 16, 16), (4, 16, 8)), "attention"),
        ("embed-Embed/lookup-Lookup/Grad_Gather/UnsortedSegmentSum-op0", ((4, 16),), "embedding"),
        ("unembed-Unembed/Grad_MatMul/AllReduce-op0", ((300, 16),), "collectives"),
    ],
)
def test_a_gradient_belongs_to_the_part_of_its_shapes(name, shapes, part):
    """MindSpore gives all uses of an op the gradient of one, with its name."""
    run = OpRun(f"Gradients/{PALM}/{name}", 0.0, 1.0, 0, shapes)
    assert run.part(vocab=300) == part and part in ALL_PARTS


def test_recomputed_ops_are_those_after_the_logits():
    embed, logits = f"{PALM}/embed-Embed/Gather-op0", f"{PALM}/unembed-Unembed/MatMul-op1"
    block = f"recompute_{BLOCK}/norm-RMSNorm/Mul"
    names = [embed, f"{block}-op1", logits, f"Gradients/{logits}", f"{block}-op2", embed, f"{block}-op1", logits]
    runs = [OpRun(name, float(at), 0.5) for at, name in enumerate(names)]
    assert in_backward(runs) == [False, False, False, True, True, False, False, False]


def test_times_are_read_as_the_profiler_writes_them(tmp_path):
    (tmp_path / "x" / "FRAMEWORK").mkdir(parents=True)
    file = tmp_path / "x" / "FRAMEWORK" / "cpu_op_execute_timestamp_0.txt"
    file.write_text("Default/b/Add-op1;HostCpuOps;2000000000,500.0,0 \nDefault/a/Mul-op0;HostCpuOps;1000000000,0.25,7 ")
    shapes = file.with_name("cpu_framework_0.txt")
    lines = ["Mul;Mul-op0;7;input_1:[512, 1];input_2:[];", "Add;Add-op1;7;input_1:[4, 8];input_2:TupleShape(NoShape);"]
    shapes.write_text("\n".join(lines))
    assert read_op_times(tmp_path) == [
        OpRun("Default/a/Mul-op0", 1.0, 0.00025, 7, ((512, 1), ())),
        OpRun("Default/b/Add-op1", 2.0, 0.5, 0, ((4, 8),)),
    ]
    shapes.write_text("\n".join(reversed(lines)))
    with pytest.raises(ValueError, match="shapes of other ops"):
        read_op_times(tmp_path)
    file.write_text("")
    with pytest.raises(ValueError, match="no times of ops"):
        read_op_times(tmp_path)


def test_time_in_which_ops_overlap_counts_once():
    assert busy_seconds([OpRun("a", 0.0, 2.0), OpRun("b", 1.0, 3.0), OpRun("c", 2.0, 0.5), OpRun("d", 9.0, 1.0)]) == 5.0


def profile():
    """Two steps of 1 s: 0.1 s to read, 0.5 s of matmuls, 0.2 s of the optimizer, and 0.4 s between them."""
    steps, runs = [], []
    for number, start in ((5, 100.0), (6, 101.4)):
        steps.append(StepTimes(number, start, start + 0.1, start + 1.0))
        runs.append(OpRun(f"{BLOCK}/project_in-ProjectIn/MatMul-op0", start + 0.2, 0.2))
        runs.append(OpRun(f"Gradients/{BLOCK}/project_in-ProjectIn/Grad_MatMul/MatMul-op1", start + 0.4, 0.3))
        runs.append(OpRun("Default/update-Update/optimizer-Adafactor/Mul-op1", start + 0.75, 0.2))
        runs.append(OpRun(f"{PALM}/embed-Embed/Gather-op0", start + 1.2, 0.1))  # of an evaluation
    return StepProfile(steps, runs, stopped=102.8, vocab=300, before=[2.0, 1.0, 1.0])


def test_the_parts_of_a_step_and_the_time_between_them_are_the_step():
    found = profile()
    assert found.seconds == pytest.approx(1.0)
    assert {name: pytest.approx(times) for name, times in found.parts().items()} == {
        "projections": (0.2, 0.3),
        "optimizer": (0.2, 0.0),
    }
    host = {name: pytest.approx(seconds) for name, seconds in found.host().items()}
    assert host == {"between ops": 0.2, "reading the batch": 0.1, "after the step": 0.4}
    assert list(found.types().items()) == [("MatMul", pytest.approx((2, 0.5))), ("Mul", pytest.approx((1, 0.2)))]
    assert found.kinds() == pytest.approx({"matmuls": 0.5, "memory traffic": 0, "collectives": 0, "optimizer": 0.2})


def test_the_tables_say_what_was_measured_and_planned():
    planned = {"matmuls": 0.25, "memory traffic": 0.0, "optimizer": 0.125}
    lines = [re.split(r"  +", line) for line in describe_profile(profile(), planned, "this CPU").splitlines()]
    assert lines[0] == ["steps 5 to 6: 1,000.000 ms per step; steps without the profiler took 1,000.000 ms"]
    assert ["projections", "200.000", "300.000", "500.000", "50.0%"] in lines
    assert ["between ops", "200.000", "20.0%"] in lines
    assert ["matmuls", "500.000", "250.000"] in lines and ["step", "1,000.000", "375.000"] in lines
    assert ["between ops, and reading the batch", "300.000", "not planned"] in lines


def test_the_trace_is_in_the_format_of_chrome(tmp_path):
    write_trace(tmp_path / "trace.json", profile())
    content = json.loads((tmp_path / "trace.json").read_text())
    check_trace(content)
    events = content["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {
        "training loop",
        "ops",
        "steps",
        "thread 1",
    }
    assert all({"name", "ts", "dur", "pid", "tid"} <= set(event) for event in spans)
    (step,) = [event for event in spans if event["name"] == "step 6"]
    assert (step["ts"], step["dur"]) == pytest.approx((1.4e6, 1e6))  # microseconds
    matmul = next(event for event in spans if event["name"] == "MatMul")
    assert (matmul["ts"], matmul["dur"], matmul["cat"]) == pytest.approx((0.2e6, 0.2e6, "projections"))


def check_trace(content):
    """Rules of Chrome's trace event format, and those of Perfetto: spans of a thread nest, and no number is 0."""
    assert content.keys() == {"traceEvents", "displayTimeUnit"} and content["displayTimeUnit"] in ("ms", "ns")
    names, ends = set(), {}
    for event in content["traceEvents"]:
        thread = event["pid"], event["tid"]
        assert all(type(number) is int and number > 0 for number in thread), event  # Perfetto takes 0 for idling
        assert isinstance(event["name"], str) and event["name"] and isinstance(event.get("args", {}), dict)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and event["args"]["name"]
            names |= {thread} if event["name"] == "thread_name" else {event["pid"]}
        else:
            assert event["ph"] == "X" and thread in names and event["pid"] in names
            assert all(math.isfinite(event[time]) and event[time] >= 0 for time in ("ts", "dur"))
            ends.setdefault(thread, []).append(event)
    for events in ends.values():
        ordered = sorted(events, key=lambda event: event["ts"])  # as viewers sort: those of equal times stay in order
        check_nesting([(event["ts"], event["ts"] + event["dur"]) for event in ordered])  # speedscope adds in float64
        whole = [(int(1000 * event["ts"]), int(1000 * event["dur"])) for event in ordered]  # Perfetto rounds down to ns
        check_nesting([(start, start + length) for start, length in whole])


def check_nesting(spans):
    opened = []
    for start, end in spans:
        while opened and opened[-1] <= start:
            opened.pop()
        assert not opened or end <= opened[-1], f"{start} to {end} ends after what it began in"
        opened.append(end)


def test_spans_of_a_thread_nest_whatever_is_rounded(tmp_path):
    """Ops that follow each other without a gap, at times that are no multiples of a nanosecond."""
    rng = np.random.default_rng(0)
    seconds = rng.uniform(0.0, 3e-6, 2000)
    starts = 1.7e9 + np.cumsum(seconds)
    runs = [OpRun("a/Mul-op0", float(start), float(s), 7) for start, s in zip(starts[:-1], seconds[1:], strict=True)]
    found = StepProfile([StepTimes(5, 1.7e9, 1.7e9 + 1e-7, 1.7e9 + 1.0)], runs, 1.7e9 + 1.0, 300)
    write_trace(tmp_path / "trace.json", found)
    check_trace(json.loads((tmp_path / "trace.json").read_text()))


@pytest.mark.parametrize("text", ["5", "5:", ":5", "0:3", "8:5", "a:b", "5:6:7", "-1:3", "1.0:2", ""])
def test_what_is_no_range_is_one_sentence(text):
    with pytest.raises(UserError, match=r"^--profile .*: write FROM:TO, for example 5:8"):
        parse_profile(text)


@pytest.mark.parametrize(
    ("options", "resumes_from", "device", "said"),
    [
        ((1, 3), 0, "CPU", "step 1 is the first, which also compiles its graphs; profile from step 2 on"),
        ((5, 8), 10, "CPU", "the run resumes from step 10, and step 11 is the first, .*; profile from step 12 on"),
        ((5, 21), 0, "CPU", "the run ends with step 20"),
        ((5, 8), 0, "GPU", "on GPU, a profile is not supported, only on CPU"),
    ],
)
def test_steps_that_cannot_be_profiled_are_one_sentence(options, resumes_from, device, said):
    with pytest.raises(UserError, match=said):
        check_profile(ProfileOptions(*options), resumes_from, 20, device)
    check_profile(ProfileOptions(12, 20), resumes_from, 20, "CPU")


def test_a_restarted_process_profiles_nothing():
    command = ["run/train.py", "--profile", "5:8", "--overwrite", "train.steps=9"]
    assert once_done(command) == ["run/train.py", "train.steps=9"]
    assert once_done(["a", "--profile=5:8", "b"]) == ["a", "b"]


def same_bits(one, other, step):
    first, second = (Checkpoint(folder / "checkpoints" / f"step_{step:06d}").folder for folder in (one, other))
    from safetensors.numpy import load_file

    a, b = (load_file(folder / "rank_0.safetensors") for folder in (first, second))
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("in_cpp", [True, False], ids=["C++", "MindSpore"])
def test_a_profiled_run_has_the_bits_of_one_that_is_not(tmp_path, monkeypatch, capsys, in_cpp):
    write_text(tmp_path)
    monkeypatch.setenv(fused.SWITCH, "1" if in_cpp else "0")
    monkeypatch.setenv(
        SWITCH, str(tmp_path / "graphs")
    )  # the first run keeps its graph, and the second must not load it
    train = trainer(tmp_path, monkeypatch, capsys)
    code, out, err = train("plain", "train.steps=9")
    assert code == 0, err
    code, out, err = train("profiled", "train.steps=9", "--profile", "4:6")
    assert code == 0, err
    assert os.environ[SWITCH] == str(tmp_path / "graphs")
    rows = [
        [(row.loss, row.gradient_norm, row.learning_rate) for row in read_rows(tmp_path / name / "metrics.csv")]
        for name in ("plain", "profiled")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 9
    same_bits(tmp_path / "plain", tmp_path / "profiled", 9)

    home = tmp_path / "profiled" / "profile"
    assert {path.name for path in home.iterdir()} == {"trace.json", "report.txt"}
    report = (home / "report.txt").read_text()
    assert report in out and report.startswith("steps 4 to 6: ") and "planned for this CPU" in report
    trace = json.loads((home / "trace.json").read_text())
    check_trace(trace)
    spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert [e["name"] for e in spans if e["name"].startswith("step ")] == ["step 4", "step 5", "step 6"]
    ops = [e for e in spans if "cat" in e]
    parts = {e["cat"] for e in ops}
    if in_cpp:
        assert parts >= {BLOCKS, UNEMBED, "embedding", "optimizer"}
        assert not parts & {"projections", "attention", "mlp", "rest of the blocks", "logits", "norms"}
    else:
        assert parts == set(ALL_PARTS) - {"collectives", BLOCKS, UNEMBED}
    assert sum(e["cat"] == "ops without a Cell" for e in ops) < 0.2 * len(ops)
    # two for the logits, and two for each of q, k with v, o, gate, up and the mlp's output, in each of three steps
    backward = [e for e in ops if e["name"] == "MatMul" and e["args"]["op"].startswith("Gradients/")]
    assert sum(e["cat"] == "logits" for e in backward) == (0 if in_cpp else 3 * 2)
    assert sum(e["cat"] == "projections" for e in backward) == (0 if in_cpp else 3 * 2 * 6)
    # each op is inside a step, and the table's parts with the time between ops are the step
    steps = [(e["ts"], e["ts"] + e["dur"]) for e in spans if e["name"] == "graph"]
    assert all(any(a - 1 <= e["ts"] and e["ts"] + e["dur"] <= b + 1 for a, b in steps) for e in ops)
    lines = [re.split(r"  +", line) for line in report.split("\n\n")[1].splitlines()[1:-1]]
    total = float(re.match(r"steps 4 to 6: ([\d,.]+) ms", report)[1].replace(",", ""))
    assert sum(float(line[-2].replace(",", "")) for line in lines) == pytest.approx(total, abs=0.02)
    seconds = [row.seconds for row in read_rows(tmp_path / "profiled" / "metrics.csv")][3:6]
    assert total == pytest.approx(1e3 * sum(seconds) / 3, abs=0.01)

    code, out, err = train("profiled", "train.steps=12", "--profile", "4:6")
    assert code == 2 and "profile from step 11 on" in err
    code, out, err = train("profiled", "train.steps=3", "--overwrite")
    assert code == 0 and not home.exists()


def test_a_profiler_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    write_text(tmp_path)
    train = trainer(tmp_path, monkeypatch, capsys)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ms.profiler, "profile", fail)
    code, out, err = train("run", "train.steps=6", "--profile", "3:4")
    assert code == 0, err
    assert out.count("--profile 3:4: no profile, as No space left on device; training continues") == 1
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 6

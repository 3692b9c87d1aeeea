"""A machine fitted to a run predicts that run, says what was fitted, and refuses what does not tell enough."""

import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import yaml
from checkpoints.in_process import SIZES, write_text

from mindspore_palm.cli.plan import fit_to_run
from mindspore_palm.cost.workload import Workload
from mindspore_palm.errors import UserError
from mindspore_palm.plan.fit import MeasuredStep, describe_fit, fit, predicted_seconds
from mindspore_palm.plan.host import host_machine, measure_bandwidth
from mindspore_palm.plan.machines import load_machine
from mindspore_palm.settings import load_settings, settings_to_yaml
from mindspore_palm.train.log.metrics import HEADER, MetricsRow, line_of, read_rows

ROOT = Path(__file__).resolve().parents[2]
TINY = "model.layers=2 model.d_model=32 model.heads=2 model.head_dim=16 model.d_ff=64 model.vocab_size=320"
TINY += " data.seq_len=32 train.batch_size=4"
PEAK, BANDWIDTH = 1e11, 1e10


def settings(*more):
    return load_settings(None, [*TINY.split(), *more])[0]


def steps(seconds, sequences=4):
    return [MeasuredStep(sequences, value, PEAK) for value in seconds]


def scattered(center, count=41, seed=1):
    draw = random.Random(seed)
    return [30 * center, *(center * math.exp(draw.gauss(0, 0.1)) for _ in range(count))]  # the first step compiles


def test_the_median_of_the_run_is_predicted():
    times = scattered(0.02)
    result = fit("runs/a", settings(), steps(times), None, BANDWIDTH)
    assert result.predicted == pytest.approx(median(times[1:]), rel=1e-6)
    assert predicted_seconds(settings(), 4, result.machine) == result.predicted
    assert result.machine.peak == pytest.approx(PEAK) and 0 < result.machine.matmul_efficiency < 1


def test_the_efficiency_of_a_machine_made_up_by_hand_is_found():
    """One device has no links: twice the time is half the efficiency."""
    whole = predicted_seconds(settings(), 4, host_machine(PEAK, BANDWIDTH, "made up"))
    result = fit("runs/a", settings(), steps([9.0, *[whole / 0.25] * 12]), None, BANDWIDTH)
    assert result.factor == pytest.approx(0.25, rel=1e-9)
    assert result.machine.matmul_efficiency == result.machine.memory_efficiency == pytest.approx(0.25, rel=1e-9)


def test_a_step_on_a_cpu_counts_float32_by_hand():
    """One layer: matmuls of 4 bytes, and twice the traffic of 16 bits outside of them."""
    one = settings("model.layers=1")
    cpu, slow_memory = (host_machine(PEAK, bandwidth, "made up") for bandwidth in (1e18, 1e6))
    tokens, d, k, heads, ff, vocab, length = 128, 32, 16, 2, 64, 320, 32
    weights = d * (heads * k + 2 * ff) + d * 2 * k + (heads * k + ff) * d + vocab * d
    scores = 2 * 4 * heads * length * length * k  # q k and p v
    flops = 3 * 2 * (tokens * weights + scores)  # a backward pass is two matmuls of the same size
    cpu = cpu.model_copy(update={"memory_gb_s": 1e30})
    assert predicted_seconds(one, 4, cpu) == pytest.approx(flops / PEAK, rel=1e-6)

    work = Workload.of(one, slow_memory.target)
    half = Workload.of(one, "GPU")
    assert work.block_traffic(False) == 2 * half.block_traffic(False)
    assert work.activation_bytes == 4 * tokens * d == 2 * half.activation_bytes


def test_other_batch_sizes_are_predicted_and_compared():
    ramp = settings("train.batch_size=[[0,4],[20,8]]")
    times = steps([9.0, *[0.01] * 19]) + steps([9.0, *[0.03] * 19], 8)
    result = fit("runs/a", ramp, times, None, BANDWIDTH)
    assert result.fitted.sequences == 8 and result.predicted == pytest.approx(0.03)
    ((other, predicted),) = result.others
    assert (other.sequences, other.median) == (4, 0.01) and 0.015 <= predicted < 0.03  # at least half: weights are read
    text = describe_fit("runs/a", ramp, result, None)
    error = predicted / 0.01 - 1
    assert (
        f"Not fitted: 19 steps of 4 sequences, median 10.00 ms, predicted {1e3 * predicted:.2f} ms ({error:+.1%})"
        in text
    )


def test_the_file_says_what_was_fitted_and_what_was_taken_over(tmp_path):
    result = fit("runs/a", settings(), steps([9.0, *[0.02] * 12]), None, BANDWIDTH)
    text = describe_fit("runs/a", settings(), result, None)
    (tmp_path / "mine.yaml").write_text(text)
    machine = load_machine(str(tmp_path / "mine.yaml"))
    assert machine == result.machine
    assert {name for name, source in machine.sources.items() if source.startswith("fitted")} == {
        "matmul_efficiency",
        "memory_efficiency",
    }
    assert machine.sources["peak_tflops"].startswith("taken over from runs/a")
    assert "median 20.00 ms" in text and "Assumed: train.device = auto was a CPU" in text
    assert predicted_seconds(settings(), 4, machine) == pytest.approx(0.02, rel=1e-6)


def test_links_of_a_named_machine_are_taken_over_and_said():
    two = settings("parallel.data=2", "train.device=GPU", "model.vocab_multiple=2")
    result = fit("runs/a", two, steps([9.0, *[0.5] * 12]), load_machine("a100"), 0.0)
    machine, base = result.machine, load_machine("a100")
    assert result.predicted == pytest.approx(0.5)
    assert (machine.server_gb_s, machine.network_gb_s, machine.peak) == (base.server_gb_s, base.network_gb_s, base.peak)
    assert machine.matmul_efficiency / base.matmul_efficiency == pytest.approx(result.factor)
    assert machine.memory_efficiency / base.memory_efficiency == pytest.approx(result.factor)
    assert "Assumed: the links of a100" in describe_fit("runs/a", two, result, "a100")


@pytest.mark.parametrize(
    ("more", "times", "said"),
    [
        ([], [], "metrics.csv has no step with a time"),
        ([], [9.0, *[0.02] * 9], "9 steps of 4 sequences can be used, .*; a fit takes at least 10"),
        ([], [1e-9] * 20, "needs .* s at full efficiency: its peak of 0.1 TFLOP/s"),
        (["parallel.data=2"], [0.02] * 20, "a step of 2 devices does not show what of it was computing"),
        (["train.device=GPU"], [0.02] * 20, "trained with train.device = GPU; name the machine"),
        (["train.compute_dtype=float16"], [0.02] * 20, "a CPU's peak is for float32 matmuls"),
    ],
)
def test_a_run_that_does_not_tell_enough_is_refused(more, times, said):
    with pytest.raises(UserError, match=said):
        fit("runs/a", settings(*more), steps(times), None, BANDWIDTH)


def write_run(folder, seconds, skipped=()):
    folder.mkdir()
    one = settings()
    (folder / "config.yaml").write_text(settings_to_yaml(one))
    flops, rows = one.model.flops_per_token(32), []
    for step, value in enumerate(seconds, start=1):
        rate = 128 / value
        skip, mfu = int(step in skipped), rate * flops / PEAK
        row = MetricsRow(step, 3.0, 3.0, 0.01, 1.0, skip, 128 * step, value, rate, mfu, 0.1)
        rows.append(line_of(row))
    (folder / "metrics.csv").write_bytes((HEADER + "".join(rows)).encode())


def test_rows_of_a_run_are_read(tmp_path, capsys):
    write_run(tmp_path / "run", [9.0, *[0.02] * 12, 5.0], skipped=[14])
    text = fit_to_run(tmp_path / "run", None)
    assert "12 steps of 4 sequences, median 20.00 ms" in text
    assert yaml.safe_load(text)["peak_tflops"] == pytest.approx(PEAK / 1e12, rel=1e-6)


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"--from-run .*: there is no run, as it has no config\.yaml"):
        fit_to_run(tmp_path, None)
    write_run(tmp_path / "run", [9.0])
    (tmp_path / "run" / "metrics.csv").unlink()
    with pytest.raises(UserError, match="no step with a time"):
        fit_to_run(tmp_path / "run", None)


def test_the_bandwidth_of_memory_is_measured():
    assert 1e8 < measure_bandwidth() < 1e13


def palm(home, *arguments):
    command = [sys.executable, "-m", "mindspore_palm", *arguments]
    result = subprocess.run(command, cwd=home, env=environment(), capture_output=True, text=True, timeout=600)
    assert "Traceback" not in result.stderr
    return result


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_real_run_is_predicted_within_its_scatter(tmp_path):
    write_text(tmp_path)
    sizes = [word for word in SIZES if not word.startswith("train.peak_tflops")]
    run = ["data.path=text.txt", "train.output=run", "data.prepared=prepared", "train.steps=40"]
    trained = palm(tmp_path, "train", *sizes, *run)
    assert trained.returncode == 0, trained.stderr
    fitted = palm(tmp_path, "plan", "--from-run", "run")
    assert fitted.returncode == 0, fitted.stderr
    (tmp_path / "mine.yaml").write_text(fitted.stdout)
    planned = palm(tmp_path, "plan", "--config", "run/config.yaml", "--machine", "mine.yaml")
    assert planned.returncode == 0, planned.stderr
    value, unit = re.search(r"^ *step +([\d.,]+) (s|ms|us) ", planned.stdout, re.M).groups()
    predicted = float(value) * {"s": 1, "ms": 1e-3, "us": 1e-6}[unit]
    measured = median(row.seconds for row in read_rows(tmp_path / "run" / "metrics.csv")[1:])
    assert predicted == pytest.approx(measured, rel=0.05)
    odd = palm(tmp_path, "plan", "--from-run", "run", "--search")
    assert odd.returncode == 2
    odd = palm(tmp_path, "plan", "--from-run", "run", "--json", "x.json")
    assert odd.returncode == 2 and "--from-run takes no other option than --machine" in odd.stderr


@pytest.mark.slow
def test_another_width_is_predicted_within_a_factor_of_three(tmp_path):
    """Fitted to one width, the model predicts twice the width; a busy machine is itself that far off."""
    write_text(tmp_path)
    sizes = "model.layers=2 model.heads=4 model.head_dim=32 model.vocab_size=512 data.seq_len=128 train.batch_size=8"
    sizes += " train.device=CPU train.eval_every=0 train.checkpoint_every=0 train.steps=20 data.path=text.txt"
    sizes += " data.prepared=prepared"
    for width in (64, 128):
        widths = [f"model.d_model={width}", f"model.d_ff={4 * width}", f"train.output=w{width}"]
        trained = palm(tmp_path, "train", *sizes.split(), *widths)
        assert trained.returncode == 0, trained.stderr
    fitted = palm(tmp_path, "plan", "--from-run", "w64")
    (tmp_path / "mine.yaml").write_text(fitted.stdout)
    predicted = predicted_seconds(
        load_settings(tmp_path / "w128" / "config.yaml")[0], 8, load_machine(str(tmp_path / "mine.yaml"))
    )
    measured = median(row.seconds for row in read_rows(tmp_path / "w128" / "metrics.csv")[1:])
    print(f"width 128: {1e3 * predicted:.1f} ms predicted from width 64, {1e3 * measured:.1f} ms measured")
    assert measured / 3 < predicted < 3 * measured

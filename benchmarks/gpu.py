"""The training step on a GPU: tokens/s, share of the card's peak, memory, and losses beside those of a CPU.

    pip install -r requirements-gpu.txt -r benchmarks/requirements.txt "jax[cuda12]"
    python benchmarks/gpu.py [--shapes 0,1,2] [--dtypes float32,tf32,float16] [--losses 50]
        [--peak-tflops 67,494,989] [--json FILE]

Contenders are this package, PaLM-pytorch under torch.compile and the JAX reference of the tests, each in its own
process on the same card, and they take turns. TF32 is for the first two, as the reference computes float32 in full. In
float16, logits are TF32 here and in JAX, and float16 in PyTorch. The peak is a matmul of this card in the same dtype,
measured just before, unless --peak-tflops states it. Memory is what nvidia-smi reports for the process; it includes the
CUDA context and what an allocator keeps. ``--device CPU`` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from train_step import jax_step, mindspore_step, model_config, torch_step  # noqa: E402 - found by the path above
from turns import Contender, in_new_process  # noqa: E402

SHAPES = (  # d_model, layers, heads, head_dim, vocab, length, batch
    (2048, 4, 16, 128, 32768, 1024, 8),
    (4096, 2, 16, 256, 32768, 2048, 2),
    (8192, 1, 32, 256, 32768, 2048, 1),
)
SMALL = (256, 2, 4, 64, 1024, 128, 4)  # for the losses: a CPU takes these steps as well
STEPS = 50


def contenders(device, dtype):
    """Name and maker of the step of each, on a device."""
    torch_device, platform = ("cpu", "cpu") if device == "CPU" else ("cuda", "cuda")
    makers = {
        "mindspore_palm": partial(mindspore_step, device=device, dtype=dtype),
        "torch.compile": partial(torch_step, compiled=True, device=torch_device, dtype=dtype),
        "jax": partial(jax_step, platform=platform, dtype=dtype),
    }
    return {name: make for name, make in makers.items() if not (name == "jax" and dtype == "tf32")}


def peak_flops(device, dtype):
    from mindspore_palm.parallel.context import open_device

    open_device(device, tf32=dtype == "tf32")
    from mindspore_palm.train.log.peak import measure_peak

    wanted = "float16" if dtype == "float16" else "float32"
    return statistics.median(measure_peak(device, wanted) for _ in range(3))


def losses(device, dtype, shape, count):
    step = mindspore_step(shape, device, dtype)
    return [step() for _ in range(count)]


def card(device):
    """Name of the card and its driver."""
    if device == "CPU":
        return "CPU"
    return _smi("--query-gpu=name,driver_version").splitlines()[0]


def memory_of(pid):
    """Megabytes that a process has on the card; None where nvidia-smi does not say."""
    for line in _smi("--query-compute-apps=pid,used_memory").splitlines():
        number, megabytes = line.split(",")
        if int(number) == pid:
            return int(megabytes)
    return None


def _smi(query):
    try:
        return subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def race(shape, device, dtype, rounds, steps, peak):
    """Tokens/s, share of the peak and memory of each contender."""
    running = {name: Contender(make, shape) for name, make in contenders(device, dtype).items()}
    for contender in running.values():
        contender.wait()
    times = {name: [] for name in running}
    for _ in range(rounds):
        for name, contender in running.items():
            times[name].append(statistics.median(contender.steps(steps)))
    memory = {name: memory_of(contender.process.pid) for name, contender in running.items()}
    for contender in running.values():
        contender.close()
    tokens = shape[5] * shape[6]
    flops, first = model_config(shape).flops_per_token(shape[5]) * tokens, times["mindspore_palm"]
    return {
        name: {
            "tokens_per_second": tokens / statistics.median(seconds),
            "times_ours": statistics.median(own / base for own, base in zip(seconds, first, strict=True)),
            "mfu": flops / statistics.median(seconds) / peak,
            "memory_mb": memory[name],
        }
        for name, seconds in times.items()
    }


def write(file, results):
    """Writes what has been measured so far."""
    if file:
        Path(file).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def problem_of(device):
    """Why the device cannot be used; empty if it can."""
    from mindspore_palm.errors import UserError
    from mindspore_palm.parallel.context import choose_device

    try:
        choose_device(device, "--device")
    except UserError as error:
        return str(error)
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="GPU", choices=("GPU", "CPU"))
    parser.add_argument("--shapes", default="0,1,2", help="numbers of the shapes, or seven sizes joined by x")
    parser.add_argument("--dtypes", default="float32,tf32,float16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps per turn")
    parser.add_argument("--losses", type=int, default=STEPS, help="steps whose losses are compared with those of a CPU")
    parser.add_argument("--peak-tflops", help="peak of the card in each dtype; measured if not given")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    device = arguments.device
    if problem := in_new_process(problem_of, device):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    dtypes = arguments.dtypes.split(",")
    stated = [1e12 * float(peak) for peak in arguments.peak_tflops.split(",")] if arguments.peak_tflops else []
    if stated and len(stated) != len(dtypes):
        print(f"error: --peak-tflops has {len(stated)} numbers for {len(dtypes)} dtypes", file=sys.stderr)
        return 2
    results = {"card": card(device), "steps": [], "losses": {}}
    print(results["card"])
    measured = (in_new_process(peak_flops, device, dtype) for dtype in dtypes)
    peaks = dict(zip(dtypes, stated or measured, strict=True))
    print(", ".join(f"peak in {dtype}: {peak / 1e12:.1f} TFLOP/s" for dtype, peak in peaks.items()))
    print("d_model, layers, heads, head_dim, vocab, length, batch: contender, tokens/s, time over ours, MFU, memory")
    for text in arguments.shapes.split(","):
        shape = SHAPES[int(text)] if text.isdecimal() else tuple(map(int, text.split("x")))
        for dtype in dtypes:
            rows = race(shape, device, dtype, arguments.rounds, arguments.steps, peaks[dtype])
            results["steps"].append({"shape": shape, "dtype": dtype, "figures": rows})
            write(arguments.json, results)
            print(f"{', '.join(map(str, shape))} in {dtype}", flush=True)
            for name, row in rows.items():
                memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:8,} MB"
                print(
                    f"  {name:<16}{row['tokens_per_second']:12,.0f}{row['times_ours']:8.2f}x{row['mfu']:8.1%}{memory}"
                )
    count = arguments.losses
    expected = in_new_process(losses, "CPU", "float32", SMALL, count) if count else []
    for dtype in dtypes if count else ():
        found = in_new_process(losses, device, dtype, SMALL, count)
        far = max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))
        results["losses"][dtype] = {"device": found, "cpu": expected, "largest_relative_difference": far}
        print(f"losses of {count} steps in {dtype}, largest relative difference to a CPU's in float32: {far:.2g}")
    write(arguments.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

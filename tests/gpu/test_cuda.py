"""CUDA by pip alone: what is missing is one sentence with its remedy, and a GPU that cannot work is passed over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

PROBLEM = (
    "import mindspore_palm; from mindspore_palm import cuda; cuda.prepare(); print(cuda.present(), cuda.problem())"
)


def problem(gpu, **variables: str) -> str:
    ended = gpu("-c", PROBLEM, **variables)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_pip_s_packages_and_a_driver_are_enough(gpu):
    assert problem(gpu) == "True"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"LD_LIBRARY_PATH": ""}, ["False", "no NVIDIA driver (libcuda.so.1", "apt-get install", "--gpus all"]),
        ({"STANDIN_CUDA": "11040"}, ["is for CUDA 11.4, and MindSpore needs 11.6", "510 or newer", "apt-get install"]),
        ({"STANDIN_INIT": "803"}, ["does not start (CUDA error 803)", "nvidia-smi"]),
        ({"STANDIN_INIT": "100"}, ["finds no GPU", "CUDA_VISIBLE_DEVICES"]),
        ({"MINDSPORE_PALM_CACHE": "/proc/nowhere"}, ["its CUDA cannot be prepared: ", "/proc/nowhere"]),
        ({"STANDIN_DEVICES": "0"}, ["finds no GPU", "CUDA_VISIBLE_DEVICES"]),
        ({"STANDIN_CAPABILITY": "52"}, ["compute capability 5.2", "6.0 and newer", "train.device=CPU"]),
        ({"PYTHONPATH": "."}, ["libcudart.so.11.0 is not installed", "pip install -r requirements-gpu.txt"]),
    ],
    ids=[
        "no driver",
        "old driver",
        "driver that does not start",
        "hidden",
        "no cache",
        "no device",
        "old device",
        "no packages",
    ],
)
def test_what_is_missing_is_one_sentence_with_its_remedy(gpu, variables, words):
    said = problem(gpu, **variables)
    assert all(word in said for word in words), said
    assert "\n" not in said


def test_a_missing_package_is_named_by_its_library(gpu, tmp_path):
    listing = gpu("-c", "import nvidia; print(list(nvidia.__path__)[0])").stdout.strip()
    shutil.copytree(Path(listing), tmp_path / "nvidia", ignore=shutil.ignore_patterns("cudnn"))
    assert "libcudnn.so.8 is not installed" in problem(gpu, PYTHONPATH=f"{tmp_path}:.")


FIRST_USE = "import mindspore_palm; from mindspore_palm import cuda; cuda.prepare(); print(cuda.first_use())"


@pytest.mark.parametrize(
    ("capability", "compiled", "is_said"), [(80, 0, False), (89, 0, False), (90, 0, True), (90, 350 * 2**20, False)]
)
def test_that_a_newer_card_compiles_the_kernels_first_is_said(gpu, tmp_path, capability, compiled, is_said):
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "kernels").open("wb") as file:
        file.truncate(compiled)
    ended = gpu("-c", FIRST_USE, STANDIN_CAPABILITY=str(capability), CUDA_CACHE_PATH=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    expected = (
        "9.0, and MindSpore contains kernels for up to 8.9: the driver compiles them now, once, which takes minutes"
    )
    assert (expected in ended.stdout and str(tmp_path) in ended.stdout) == is_said
    assert bool(ended.stdout.strip()) == is_said


def test_the_kernels_that_it_compiles_fit_into_its_cache(gpu):
    code = f"{PROBLEM}; import os; print(os.environ['CUDA_CACHE_MAXSIZE'])"
    assert gpu("-c", code).stdout.split()[-1] == str(2**30)
    assert gpu("-c", code, CUDA_CACHE_MAXSIZE="5").stdout.split()[-1] == "5"


def toolkit(folder: Path, packages: Path, release: str) -> Path:
    """A CUDA toolkit with cuDNN, as an administrator installs it."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib64").mkdir()
    for library in packages.glob("*/lib/*"):
        shutil.copy(library, folder / "lib64")
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    return folder


@pytest.mark.parametrize(("release", "is_used"), [("11.6", True), ("11.8", True), ("12.2", False), ("11.1", False)])
def test_a_toolkit_is_used_if_it_fits(gpu, tmp_path, release, is_used):
    packages = Path(gpu("-c", "import nvidia; print(list(nvidia.__path__)[0])").stdout.strip())
    own = toolkit(tmp_path / "cuda", packages, release)
    code = f"{PROBLEM}; import os; print(os.environ['CUDA_HOME'])"
    code += "; import mindspore; print(mindspore.hal.is_available('GPU'))"
    ended = gpu("-c", code, CUDA_HOME=str(own))
    said, home, available = ended.stdout.split("\n")[:3]
    assert said.strip() == "True" and available == "True", ended.stderr
    assert (home == str(own)) == is_used


def test_auto_passes_over_a_gpu_that_cannot_work_and_says_why(gpu):
    code = "from mindspore_palm.parallel.context import choose_device; print(*choose_device('auto'))"
    said = gpu("-c", code, STANDIN_CUDA="11040").stdout
    assert said.startswith("CPU the fastest kind") and "but no GPU: its NVIDIA driver is for CUDA 11.4" in said
    assert gpu("-c", code, LD_LIBRARY_PATH="").stdout.strip().endswith("finds here")  # nobody expects one


def test_a_gpu_that_is_asked_for_and_cannot_work_ends_the_command(gpu, tmp_path):
    ended = gpu(
        "run/train.py",
        "--config",
        "yaml/palm_tiny.yaml",
        "train.device=GPU",
        f"train.output={tmp_path}/run",
        STANDIN_CUDA="11040",
    )
    assert ended.returncode == 2
    assert "train.device = GPU: its NVIDIA driver is for CUDA 11.4" in ended.stderr
    assert "Traceback" not in ended.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize("home", ["", "/usr/local/a-toolkit-that-does-not-fit"])
def test_mindspore_imported_first_is_told(gpu, home):
    code = "import mindspore; from mindspore_palm.parallel.context import choose_device; choose_device('GPU')"
    assert "MindSpore was imported before mindspore_palm" in gpu("-c", code, CUDA_HOME=home).stderr


def test_requirements_name_a_package_for_every_library():
    from mindspore_palm.cuda import LIBRARIES

    lines = (Path(__file__).resolve().parents[2] / "requirements-gpu.txt").read_text().splitlines()
    named = {line.partition("==")[0].removeprefix("nvidia-").removesuffix("-cu11") for line in lines if "==" in line}
    assert {package.replace("_", "-") for package in LIBRARIES.values()} == named

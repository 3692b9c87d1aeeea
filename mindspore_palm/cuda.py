"""NVIDIA GPUs by pip alone: finds the libraries of CUDA 11, and what keeps a GPU from being used.

MS-55: MindSpore opens its GPU backend when it is imported, if ``$CUDA_HOME/bin/nvcc`` prints a version of CUDA 11 and
the dynamic linker finds CUDA's libraries. No linker finds pip's nvidia-*-cu11 packages, and they hold no nvcc. So they
are loaded here first, and a script answers in nvcc's place. A CUDA toolkit that fits is used instead, if there is one.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from mindspore_palm.errors import UserError
from mindspore_palm.native import cache_root

DRIVER = "libcuda.so.1"
LIBRARIES = {
    "libcudart.so.11.0": "cuda_runtime",
    "libnvrtc.so.11.2": "cuda_nvrtc",
    "libcublasLt.so.11": "cublas",
    "libcublas.so.11": "cublas",
    "libcudnn.so.8": "cudnn",
    "libcufft.so.10": "cufft",
    "libcurand.so.10": "curand",
    "libcusparse.so.11": "cusparse",
    "libcusolver.so.11": "cusolver",
}
"""Libraries that the backend is linked to, each after those that it needs itself, and their folder in ``nvidia``."""
CUDA, OLDEST_DRIVER = (11, 6), "510"
"""The CUDA that the backend was built with, and the first driver for it."""
CAPABILITY, NEWEST = (6, 0), (8, 9)
"""Compute capabilities that its kernels run on: those for 8.0 do on all of 8. Newer cards compile first (MS-57)."""
COMPILED, CACHE = 100 * 2**20, 2**30
"""Bytes: less than its compiled kernels have (350 MB on an H200), and what they need at most."""
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
TOOLKIT = "/usr/local/cuda"
NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release {}.{}, V{}.{}.0'\n"
INSTALL_DRIVER = "apt-get install nvidia-driver-535 installs one; docker needs run --gpus all"
INSTALL_LIBRARIES = "pip install -r requirements-gpu.txt"

_problem = ""
_driver: ctypes.CDLL | None = None


class BeforeMindSpore(MetaPathFinder):
    """Calls ``prepare`` when MindSpore is first imported; finds nothing itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if name == "mindspore":
            sys.meta_path.remove(self)
            prepare()
        return None


def prepare_with_mindspore() -> None:
    """Has ``prepare`` called when MindSpore is imported, by whomever."""
    global _problem
    if "mindspore" not in sys.modules:
        sys.meta_path.insert(0, BeforeMindSpore())
    else:  # asked for only if MindSpore found no GPU
        _problem = "MindSpore was imported before mindspore_palm, which finds CUDA for it; import mindspore_palm first"


def prepare() -> None:
    """Loads the libraries of CUDA, if there is a driver. What is missing is kept for ``problem``."""
    global _problem
    try:
        _problem = _load()
    except (OSError, UserError) as error:  # the import of MindSpore goes on, without a GPU
        _problem = f"its CUDA cannot be prepared: {error}"


def present() -> bool:
    """Whether this machine has an NVIDIA driver: without one, nobody expects a GPU."""
    return _driver is not None


def problem() -> str:
    """Why no GPU can be used, and what to do about it; empty if one can. Starts the driver."""
    return _problem or (_device_problem(_driver) if _driver else "")


def first_use() -> str:
    """The reason why this card will first compile for minutes; empty if it has done so, or need not."""
    capability = _capability(_driver) if _driver else NEWEST
    folder = Path(os.environ.get("CUDA_CACHE_PATH") or os.path.expanduser("~/.nv/ComputeCache"))
    if capability <= NEWEST or _bytes_in(folder) > COMPILED:
        return ""
    return (
        f"this GPU has compute capability {capability[0]}.{capability[1]}, and MindSpore contains kernels for up to "
        f"{NEWEST[0]}.{NEWEST[1]}: the driver compiles them now, once, which takes minutes, and keeps them in {folder}"
    )


def _bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder, as far as they can be read."""
    sizes = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                sizes += Path(root, name).stat().st_size
    return sizes


def _load() -> str:
    global _driver
    os.environ.setdefault(
        "CUDA_CACHE_MAXSIZE", str(CACHE)
    )  # that of older drivers is too small: they compile each time
    try:
        _driver = ctypes.CDLL(DRIVER)
    except OSError:
        return f"this machine has no NVIDIA driver ({DRIVER} is not found); {INSTALL_DRIVER}"
    supported = ctypes.c_int()
    _driver.cuDriverGetVersion(ctypes.byref(supported))
    version = supported.value // 1000, supported.value % 1000 // 10
    if version < CUDA:
        return (
            f"its NVIDIA driver is for CUDA {version[0]}.{version[1]}, and MindSpore needs {CUDA[0]}.{CUDA[1]}: update "
            f"it to {OLDEST_DRIVER} or newer; {INSTALL_DRIVER}"
        )
    toolkit = Path(os.environ.get("CUDA_HOME") or TOOLKIT)
    if _fits(toolkit) and not _first_missing(lambda package: [toolkit / "lib64"]):
        os.environ["CUDA_HOME"] = str(toolkit)
        return ""
    found = find_spec("nvidia")  # a namespace that all of pip's packages share
    folders = [Path(folder) for folder in found.submodule_search_locations or ()] if found else []
    if missing := _first_missing(lambda package: [folder / package / "lib" for folder in folders]):
        return f"CUDA's {missing} is not installed; {INSTALL_LIBRARIES}"
    os.environ["CUDA_HOME"] = str(_answering_nvcc())
    # MindSpore also asks ldd, a child process, and logs an error for each library that ldd does not find
    searched = [str(folder / package / "lib") for folder in folders for package in sorted(set(LIBRARIES.values()))]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [*searched, os.environ.get("LD_LIBRARY_PATH")]))
    return ""


def _fits(toolkit: Path) -> bool:
    """Whether a CUDA toolkit is one that MindSpore takes."""
    command = [str(toolkit / "bin" / "nvcc"), "--version"]
    try:
        ended = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=30)  # noqa: S603 - the user's nvcc
    except (OSError, subprocess.TimeoutExpired):
        return False
    release = re.search(r"release (\d+)\.(\d+)", ended.stdout)
    return release is not None and CUDA <= (int(release[1]), int(release[2])) < (CUDA[0] + 1, 0)


def _first_missing(folders: Callable[[str], list[Path]]) -> str:
    """Loads all libraries; returns the first that is missing.

    Args:
        folders: where a package's libraries may be; if they are not there, the dynamic linker is asked.
    """
    for name, package in LIBRARIES.items():
        files = [folder / name for folder in folders(package)]
        file = next((file for file in files if file.exists()), Path(name))
        try:
            ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
        except OSError:
            return name
    return ""


def _answering_nvcc() -> Path:
    """A folder with a bin/nvcc that only prints the version."""
    folder = cache_root() / "cuda"
    nvcc = folder / "bin" / "nvcc"
    text = NVCC.format(*CUDA, *CUDA)
    if not (nvcc.exists() and nvcc.read_text(encoding="utf-8") == text and os.access(nvcc, os.X_OK)):
        nvcc.parent.mkdir(parents=True, exist_ok=True)
        fresh = nvcc.with_name(f"nvcc.{os.getpid()}")
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o755)
        os.replace(fresh, nvcc)
    return folder


def _device_problem(driver: ctypes.CDLL) -> str:
    """Why none of the driver's devices can be used; empty if the first can."""
    count = ctypes.c_int()
    code = driver.cuInit(0)
    if code not in (0, NO_DEVICE):
        return f"its NVIDIA driver does not start (CUDA error {code}); nvidia-smi says more"
    if code or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "its NVIDIA driver finds no GPU; nvidia-smi lists them, and CUDA_VISIBLE_DEVICES may hide them"
    capability = _capability(driver)
    if capability < CAPABILITY:
        return (
            f"its GPU has compute capability {capability[0]}.{capability[1]}, and MindSpore has kernels for "
            f"{CAPABILITY[0]}.{CAPABILITY[1]} and newer; set train.device=CPU"
        )
    return ""


def _capability(driver: ctypes.CDLL) -> tuple[int, int]:
    """Compute capability of the driver's first device."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuInit(0)
    for attribute, value in ((75, major), (76, minor)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
    return major.value, minor.value

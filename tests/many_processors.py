"""A machine that seems to have 16 processors, of which a process may use two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int get_nprocs(void) { return 16; }
int get_nprocs_conf(void) { return 16; }
long sysconf(int name) {
  long (*of_libc)(int) = (long (*)(int))dlsym(RTLD_NEXT, "sysconf");
  return name == _SC_NPROCESSORS_ONLN || name == _SC_NPROCESSORS_CONF ? 16 : of_libc(name);
}
"""
TWO = "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])\n"
COUNT = """
import os
from pathlib import Path
from mindspore import Tensor, nn, ops
import numpy as np
class Twice(nn.Cell):
    def construct(self, x):
        return ops.add(x, x)
Twice()(Tensor(np.ones(4, np.float32))).asnumpy()
names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
print("threads", sum(name.startswith(("ActorThread", "KernelThread")) for name in names))
"""


def threads_after(start: str, folder: Path) -> int:
    """Threads that MindSpore computes with where a process may use two of 16 processors, after some lines of Python.

    Args:
        start: the lines.
        folder: where the library is built that counts 16 processors.
    """
    library = folder / "many_processors.so"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    program = folder / "program.py"
    program.write_text(TWO + start + COUNT, encoding="utf-8")  # a file: MindSpore compiles no other source
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(library)}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("threads ")]
    return int(line.split()[1])

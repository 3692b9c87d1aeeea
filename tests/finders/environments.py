"""Environments that notebooks, schedulers, containers and service managers give a command, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NOBODY = 65534  # a user without a home, to whom permissions apply
MISSING = "/dev/null/missing"  # nobody can make a folder there, not even root
READ_ONLY = "{read_only}"  # stands for a folder that a test makes


@dataclass(frozen=True)
class Case:
    """One environment."""

    variables: Mapping[str, str | None] = field(default_factory=dict)
    """None removes one. "*" removes all others."""
    streams: Mapping[int, str] = field(default_factory=dict)
    """Of 0, 1 and 2: "closed", "full" (/dev/full), "gone" (a pipe without a reader), "null" (/dev/null)."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """By the names of ``resource``."""
    folder: str = ""
    """Of the working folder: a name of its own, "deleted" or "read-only"."""
    user: int | None = None
    umask: int | None = None
    ignored: tuple[str, ...] = ()
    """Signals that are ignored from the start, as under nohup."""


def _variables(**variables: str | None) -> Case:
    return Case(variables)


SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_MEM_PER_NODE": "1000",
}
ASCEND = {"RANK_ID": "3", "RANK_SIZE": "8", "DEVICE_ID": "3", "DEVICE_NUM": "8", "RANK_TABLE_FILE": MISSING}
TORCHRUN = {
    "WORLD_SIZE": "8",
    "RANK": "3",
    "LOCAL_RANK": "3",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "PMI_SIZE": "8",
    "PMI_RANK": "3",
    "PMIX_RANK": "3",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_PORT": "tcp://10.0.0.1:443", "HOSTNAME": "pod-1"}

CASES: dict[str, Case] = {
    # notebooks and charts
    "a notebook's back end": _variables(MPLBACKEND="module://matplotlib_inline.backend_inline"),
    "a back end for windows": _variables(MPLBACKEND="TkAgg", DISPLAY=None),
    "a back end that is none": _variables(MPLBACKEND="nothing"),
    "an empty back end": _variables(MPLBACKEND=""),
    "no place for matplotlib": _variables(MPLCONFIGDIR=MISSING),
    "matplotlibrc missing": _variables(MATPLOTLIBRC=MISSING),
    "jupyter": _variables(JPY_PARENT_PID="1", CLICOLOR="1", PAGER="cat", GIT_PAGER="cat", TERM="xterm-color"),
    "a display that is gone": _variables(DISPLAY=":99", WAYLAND_DISPLAY="wayland-9"),
    # Python's own
    "unbuffered": _variables(PYTHONUNBUFFERED="1"),
    "a startup file": _variables(PYTHONSTARTUP=MISSING, PYTHONINSPECT=None),
    "hash seed 0": _variables(PYTHONHASHSEED="0"),
    "hash seed random": _variables(PYTHONHASHSEED="random"),
    "optimised": _variables(PYTHONOPTIMIZE="2"),
    "warnings are errors": _variables(PYTHONWARNINGS="error"),
    "all warnings": _variables(PYTHONWARNINGS="default"),
    "ascii streams": _variables(PYTHONIOENCODING="ascii"),
    "latin streams": _variables(PYTHONIOENCODING="latin-1"),
    "strict utf-8 streams": _variables(PYTHONIOENCODING="utf-8:strict"),
    "no utf-8 mode": _variables(PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C"),
    "utf-8 mode": _variables(PYTHONUTF8="1"),
    "development mode": _variables(PYTHONDEVMODE="1"),
    "traced allocations": _variables(PYTHONTRACEMALLOC="1"),
    "no bytecode": _variables(PYTHONDONTWRITEBYTECODE="1"),
    "bytecode elsewhere": _variables(PYTHONPYCACHEPREFIX=MISSING),
    "a path that is missing": _variables(PYTHONPATH=MISSING),
    "a safe path": _variables(PYTHONSAFEPATH="1"),
    "encoding warnings": _variables(PYTHONWARNDEFAULTENCODING="1", PYTHONWARNINGS="error::EncodingWarning"),
    # languages
    "LANG=C": _variables(LANG="C", LC_ALL=None, LC_CTYPE=None),
    "LC_ALL=C": _variables(LC_ALL="C"),
    "LC_ALL=POSIX": _variables(LC_ALL="POSIX"),
    "a locale that is missing": _variables(LC_ALL="xx_XX.nothing", LANG="xx_XX"),
    "Turkish": _variables(LC_ALL="tr_TR.UTF-8", LANG="tr_TR.UTF-8", LANGUAGE="tr"),
    "no locale": _variables(LANG=None, LC_ALL=None, LC_CTYPE=None, LANGUAGE=None),
    "a time zone that is missing": _variables(TZ="Nowhere/Nothing"),
    # schedulers and launchers
    "slurm": Case(SLURM),
    "torchrun": Case(TORCHRUN),
    "mpi": Case(MPI),
    "kubernetes": Case(KUBERNETES),
    "left by an Ascend job": Case(ASCEND),
    "left by msrun, a role alone": _variables(MS_ROLE="MS_WORKER"),
    "left by msrun, a scheduler": _variables(MS_ROLE="MS_SCHED", MS_SCHED_HOST="127.0.0.1", MS_SCHED_PORT="8118"),
    "left by msrun, a count of 1": _variables(MS_WORKER_NUM="1"),
    "left by msrun, an empty count": _variables(MS_WORKER_NUM=""),
    "left by msrun, no count": _variables(MS_WORKER_NUM="many"),
    "left by msrun, all of it": _variables(
        MS_ROLE="MS_WORKER", MS_WORKER_NUM="8", MS_SCHED_HOST="127.0.0.1", MS_SCHED_PORT="8118", MS_NODE_ID="3"
    ),
    "rank is no number": _variables(RANK_ID="x", RANK_SIZE="y", RANK="z"),
    # threads and devices
    "one thread": _variables(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
    "no threads": _variables(OMP_NUM_THREADS="0"),
    "threads are no number": _variables(OMP_NUM_THREADS="many", OPENBLAS_NUM_THREADS="many", MKL_NUM_THREADS="many"),
    "threads of levels": _variables(OMP_NUM_THREADS="4,2"),
    "many threads": _variables(OMP_NUM_THREADS="500"),
    "threads are negative": _variables(OMP_NUM_THREADS="-1"),
    "affinity": _variables(OMP_PROC_BIND="true", GOMP_CPU_AFFINITY="0", KMP_AFFINITY="compact"),
    "no GPU": _variables(CUDA_VISIBLE_DEVICES=""),
    "GPU -1": _variables(CUDA_VISIBLE_DEVICES="-1", NVIDIA_VISIBLE_DEVICES="none", ASCEND_VISIBLE_DEVICES="-1"),
    "device 9": _variables(DEVICE_ID="9", CUDA_VISIBLE_DEVICES="9", ASCEND_RT_VISIBLE_DEVICES="9"),
    # MindSpore's own
    "MindSpore's debug log": _variables(GLOG_v="0"),
    "MindSpore's log is no number": _variables(GLOG_v="loud"),
    "MindSpore's log into files": _variables(GLOG_logtostderr="0", GLOG_log_dir=MISSING, GLOG_v="1"),
    "MindSpore's log configuration": _variables(logger_maxBytes="many", logger_backupCount="-1"),
    "MindSpore's cache": _variables(MS_COMPILER_CACHE_ENABLE="1", MS_COMPILER_CACHE_PATH=MISSING),
    "MindSpore's operators elsewhere": _variables(MS_COMPILER_OP_LEVEL="0", MS_ENABLE_GRAPH_KERNEL="x"),
    # homes and temporary folders
    "no home": _variables(HOME=None),
    "an empty home": _variables(HOME=""),
    "a home that is missing": _variables(HOME=MISSING, XDG_CACHE_HOME=None),
    "a home that is a file": _variables(HOME="/etc/passwd", XDG_CACHE_HOME=None),
    "a home that is read-only": Case({"HOME": READ_ONLY, "XDG_CACHE_HOME": None}, user=NOBODY),
    "nobody's": Case({"HOME": "/nonexistent", "USER": "nobody", "LOGNAME": "nobody"}, user=NOBODY),
    "nobody without a home": Case({"HOME": None, "XDG_CACHE_HOME": None, "TMPDIR": None}, user=NOBODY),
    "a user without a name": Case({"HOME": None, "USER": None, "LOGNAME": None}, user=23456),
    "a cache that is missing": _variables(XDG_CACHE_HOME=MISSING),
    "an empty cache": _variables(XDG_CACHE_HOME=""),
    "a cache of ours that is empty": _variables(MINDSPORE_PALM_CACHE=""),
    "a cache of ours that is missing": _variables(MINDSPORE_PALM_CACHE=MISSING),
    "a temporary folder that is missing": _variables(TMPDIR=MISSING, TEMP=MISSING, TMP=MISSING),
    "a temporary folder that is a file": _variables(TMPDIR="/etc/passwd"),
    "a temporary folder that is read-only": Case({"TMPDIR": READ_ONLY}, user=NOBODY),
    "an empty temporary folder": _variables(TMPDIR=""),
    # compilers and paths
    "an empty CXX": _variables(CXX="", CC=""),
    "a CXX of spaces": _variables(CXX="  "),
    "a CXX that is missing": _variables(CXX="missing-compiler", CC="missing-compiler"),
    "a CXX that fails": _variables(CXX="false"),
    "a CXX that does nothing": _variables(CXX="true"),
    "a CXX with an open quote": _variables(CXX='g++ -DX="'),
    "a CXX that is a folder": _variables(CXX="/tmp"),
    "flags that fail": _variables(CXXFLAGS="-fnothing", LDFLAGS="-lnothing", CPATH=MISSING),
    "an empty PATH": _variables(PATH=""),
    "no PATH": _variables(PATH=None),
    "a PATH that is missing": _variables(PATH=MISSING),
    "a library path": _variables(LD_LIBRARY_PATH=MISSING),
    # terminals
    "no columns": _variables(COLUMNS="0", LINES="0"),
    "columns are no number": _variables(COLUMNS="wide", LINES="high"),
    "columns are negative": _variables(COLUMNS="-5"),
    "one column": _variables(COLUMNS="1"),
    "a dumb terminal": _variables(TERM="dumb"),
    "no terminal": _variables(TERM=None),
    "a terminal that is none": _variables(TERM="nothing"),
    "no color": _variables(NO_COLOR="1"),
    "always color": _variables(FORCE_COLOR="1", CLICOLOR_FORCE="1"),
    "progress is no number": _variables(TQDM_MININTERVAL="often", TQDM_NCOLS="wide"),
    "no progress": _variables(TQDM_DISABLE="1"),
    # nothing at all, and services
    "an empty environment": _variables(**{"*": None}),
    "systemd": _variables(**{"*": None}, PATH="/usr/bin:/bin", LANG="C.UTF-8", INVOCATION_ID="0" * 32),
    "cron": _variables(**{"*": None}, PATH="/usr/bin:/bin", HOME="/root", SHELL="/bin/sh", LOGNAME="root"),
    "proxies": _variables(http_proxy="http://127.0.0.1:9", https_proxy="nothing", no_proxy="*"),
    "a build with a date": _variables(SOURCE_DATE_EPOCH="0", CI="1"),
    "nohup": Case(ignored=("SIGHUP", "SIGINT")),
    "SIGPIPE ignored": Case(ignored=("SIGPIPE",)),
    "a umask of 077": Case(umask=0o077),
    "a umask of 777": Case(umask=0o777),
    "a umask of 777 for nobody": Case({"HOME": None}, user=NOBODY, umask=0o777),
    # streams
    "stdin closed": Case(streams={0: "closed"}),
    "stdin null": Case(streams={0: "null"}),
    "stdout closed": Case(streams={1: "closed"}),
    "stderr closed": Case(streams={2: "closed"}),
    "stdout and stderr closed": Case(streams={1: "closed", 2: "closed"}),
    "all streams closed": Case(streams={0: "closed", 1: "closed", 2: "closed"}),
    "stdout full": Case(streams={1: "full"}),
    "stderr full": Case(streams={2: "full"}),
    "stdout and stderr full": Case(streams={1: "full", 2: "full"}),
    "stdout gone": Case(streams={1: "gone"}),
    "stderr gone": Case(streams={2: "gone"}),
    "stdout and stderr gone": Case(streams={1: "gone", 2: "gone"}),
    "stdout null": Case(streams={1: "null"}),
    "a daemon's": Case(streams={0: "null", 1: "null", 2: "null"}, ignored=("SIGHUP",)),
    # limits
    "600 MB of memory": Case(limits={"RLIMIT_AS": 600 * 10**6}),
    "800 MB of memory": Case(limits={"RLIMIT_AS": 800 * 10**6}),
    "1 GB of memory": Case(limits={"RLIMIT_AS": 10**9}),
    "2 GB of memory": Case(limits={"RLIMIT_AS": 2 * 10**9}),
    "3 GB of memory": Case(limits={"RLIMIT_AS": 3 * 10**9}),
    "4 GB of memory": Case(limits={"RLIMIT_AS": 4 * 10**9}),
    "8 GB of memory": Case(limits={"RLIMIT_AS": 8 * 10**9}),
    "700 MB of data": Case(limits={"RLIMIT_DATA": 700 * 10**6}),
    "200 MB of data": Case(limits={"RLIMIT_DATA": 200 * 10**6}),
    "16 open files": Case(limits={"RLIMIT_NOFILE": 16}),
    "32 open files": Case(limits={"RLIMIT_NOFILE": 32}),
    "64 open files": Case(limits={"RLIMIT_NOFILE": 64}),
    "files of 0 bytes": Case(limits={"RLIMIT_FSIZE": 0}),
    "files of 1 kB": Case(limits={"RLIMIT_FSIZE": 1000}),
    "files of 20 kB": Case(limits={"RLIMIT_FSIZE": 20_000}),
    "no core files": Case(limits={"RLIMIT_CORE": 0}),
    "no locked memory": Case(limits={"RLIMIT_MEMLOCK": 0}),
    "a stack of 1 MB": Case(limits={"RLIMIT_STACK": 2**20}),
    "a stack of 64 MB": Case(limits={"RLIMIT_STACK": 2**26}),
    "1 process": Case({"HOME": None}, limits={"RLIMIT_NPROC": 1}, user=23457),
    "8 processes": Case({"HOME": None}, limits={"RLIMIT_NPROC": 8}, user=23458),
    # working folders
    "a folder that was deleted": Case(folder="deleted"),
    "a folder that is read-only": Case({"HOME": None}, folder="read-only", user=NOBODY),
    "a folder with a space": Case(folder="with a space"),
    "a folder in Chinese": Case(folder="文件夹"),
    "a folder in Chinese under C": Case({"LC_ALL": "C", "PYTHONUTF8": "0"}, folder="文件夹"),
    "a folder that is no UTF-8": Case(folder="caf\udce9"),
    "a folder with a pattern": Case(folder="a[b]*?"),
    "a folder with a percent": Case(folder="100%d$HOME"),
}

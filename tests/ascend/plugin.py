"""Asks MindSpore's Ascend plugin for its kernels, on a machine without Ascend: ``plugin.py FOLDER < questions``.

The wheel holds the plugin. It is linked to libraries of CANN, which only a machine with Ascend has. Empty ones are
built here with gcc, so that the plugin loads and registers its kernels; a few lines of C++ call its own functions.
FOLDER gets the libraries. Questions and answers are JSON: [[op, [input dtype or null, ...]], ...] to
[[kind, unsupported], ...].

kind is "aclnn" (a kernel that CANN's operator library is asked for by name), "acl" (an operator of CANN's graph engine,
described by an adapter in the plugin) or "" (neither). unsupported are the numbers of the inputs whose dtype the
adapter does not list; the plugin knows dtypes only where it has an adapter.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mindspore as ms
from dynamic_symbols import symbols
from mindspore._c_expression import typing

PLUGIN = Path(ms.__file__).parent / "lib" / "plugin"
OWN = PLUGIN / "ascend"
SHARED_MEMORY = OWN / "ms_kernels_symmetric_memory" / "shmem"
GROUP = [PLUGIN.parent / name for name in ("libmindspore_ops_host.so", "libmindspore_cpu.so")]
GROUP += [OWN / "libmindspore_ascend_res_manager.so", OWN / "libd_collective.so", PLUGIN / "libmindspore_ops_ascend.so"]
FIRST = [SHARED_MEMORY / "memfabric_hybrid" / "lib" / name for name in ("libmf_hybm_core.so", "libmf_smem.so")]
FIRST += [SHARED_MEMORY / "shmem" / "lib" / "libshmem.so"]
CANN = ("libruntime.so", "libplatform.so", "libc_sec.so", "libnnopbase.so", "libascend_hal.so", "libascendcl.so")
CANN += ("libhccl.so", "libge_runner.so", "libgraph.so", "libmsprofiler.so")
INSTANCE = "_ZN2ge13StatusFactory8InstanceEv"
STATUS = r"""
#include <map>
#include <string>
namespace ge {
class StatusFactory { public: static StatusFactory *Instance(); };
static std::map<unsigned, std::string> descriptions;  // the only member; inline code of the plugin fills it
StatusFactory *StatusFactory::Instance() { return reinterpret_cast<StatusFactory *>(&descriptions); }
}
"""
QUESTIONS = r"""
#include <memory>
#include <string>
namespace mindspore {
enum TypeId : int {};
namespace kernel { bool IsRegisteredAclnnOp(const std::string &); }
namespace device::ascend {
std::shared_ptr<void> FindAdapter(const std::string &, bool);
struct AclHelper { static bool IsInputDtypeSupport(const std::string &, TypeId, size_t); };
}
}
extern "C" bool aclnn(const char *op) { return mindspore::kernel::IsRegisteredAclnnOp(op); }
extern "C" bool acl(const char *op) { return bool(mindspore::device::ascend::FindAdapter(op, true)); }
extern "C" bool takes(const char *op, int type, size_t input) {
  return mindspore::device::ascend::AclHelper::IsInputDtypeSupport(op, mindspore::TypeId(type), input); }
"""
OLD_STRINGS = "-D_GLIBCXX_USE_CXX11_ABI=0"  # as MindSpore is built


def run(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def build(folder: Path) -> None:
    """Builds CANN's libraries: one defines what nobody else does, the others are empty; and the questions."""
    wanted = symbols([*GROUP, *FIRST], "--undefined-only")
    loaded = [Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line]
    known = symbols([*GROUP, *FIRST, *sorted({file for file in loaded if file.exists()})], "--defined-only")
    names = sorted(
        n for n in wanted - known - {INSTANCE} if not n.startswith(("Py", "_Py", "__gmon", "_ITM", "__gcov"))
    )
    (folder / "empty.c").write_text("")
    (folder / "names.c").write_text("".join(f"unsigned long {name}() {{ return 0; }}\n" for name in names))
    (folder / "status.cc").write_text(STATUS)
    (folder / "questions.cc").write_text(QUESTIONS)
    shared = ("-w", "-shared", "-fPIC")
    run("gcc", "-w", "-c", "-fPIC", folder / "names.c", "-o", folder / "names.o")
    for name in CANN:
        sources = [folder / "empty.c"] if name != CANN[0] else [folder / "names.o", folder / "status.cc"]
        compiler = "gcc" if name != CANN[0] else "g++"
        run(compiler, *shared, OLD_STRINGS, f"-Wl,-soname,{name}", *sources, "-o", folder / name)
    places = ":".join(map(str, (PLUGIN, OWN, PLUGIN.parent)))
    options = ["-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", f"-Wl,-rpath,{places}"]
    run("gcc", *shared, folder / "empty.c", *options, *GROUP, "-o", folder / "group.so")  # they need each other
    run("g++", "-std=c++17", *shared, OLD_STRINGS, folder / "questions.cc", "-o", folder / "questions.so")


def open_plugin(folder: Path) -> ctypes.CDLL:
    for file in (*(folder / name for name in CANN), *FIRST, folder / "group.so"):
        ctypes.CDLL(str(file), os.RTLD_LAZY | os.RTLD_GLOBAL)
    questions = ctypes.CDLL(str(folder / "questions.so"))
    for name in ("aclnn", "acl", "takes"):
        getattr(questions, name).restype = ctypes.c_bool
    return questions


def main(folder: Path) -> None:
    build(folder)
    plugin, answers = open_plugin(folder), []
    for op, dtypes in json.load(sys.stdin):
        name = op.encode()
        kind = "aclnn" if plugin.aclnn(name) else "acl" if plugin.acl(name) else ""
        unsupported = []
        if plugin.acl(name):
            types = [(i, int(typing.type_to_type_id(getattr(ms, t.lower())))) for i, t in enumerate(dtypes) if t]
            unsupported = [i for i, t in types if not plugin.takes(name, t, ctypes.c_size_t(i))]
        answers.append([kind, unsupported])
    print(json.dumps(answers), flush=True)
    os._exit(0)  # the plugin has nothing to end


if __name__ == "__main__":
    main(Path(sys.argv[1]))

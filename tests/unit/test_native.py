"""The builder of the C++ parts, in environments without a home, a compiler or a writable folder."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mindspore_palm import native
from mindspore_palm.cpu import library as cpu_library
from mindspore_palm.errors import UserError
from mindspore_palm.generate.cpu import step as cpu_step
from mindspore_palm.parallel import fused


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Sets variables, or unsets those that are None; temporary files go below tmp_path."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))

    def set_all(**variables):
        for name in ("MINDSPORE_PALM_CACHE", "XDG_CACHE_HOME", "CXX"):
            variables.setdefault(name, None)
        for name, value in variables.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, str(value))
        return tmp_path / "tmp" / f"mindspore_palm-{os.getuid()}"

    return set_all


def test_the_cache_is_where_it_is_named(environment, tmp_path):
    environment(MINDSPORE_PALM_CACHE=tmp_path / "named", HOME=tmp_path)
    assert native.cache_root() == tmp_path / "named"
    environment(MINDSPORE_PALM_CACHE="~/named", HOME=tmp_path)
    assert native.cache_root() == tmp_path / "named"
    environment(MINDSPORE_PALM_CACHE="", XDG_CACHE_HOME=tmp_path / "xdg", HOME=tmp_path)  # empty is not set
    assert native.cache_root() == tmp_path / "xdg" / "mindspore_palm"
    environment(HOME=tmp_path)
    assert native.cache_root() == tmp_path / ".cache" / "mindspore_palm"


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null", None, ""])
def test_without_a_home_that_can_be_written_it_is_a_private_temporary_folder(environment, monkeypatch, home):
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}["a user of a container, who is in no table"])
    private = environment(HOME=home)
    assert native.cache_root() == private
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@pytest.mark.parametrize("foreign", ["link", "file", "open to all"])
def test_a_temporary_folder_that_others_may_have_made_is_not_used(environment, tmp_path, foreign):
    """Code is loaded from it."""
    private = environment(HOME="/dev/null")
    if foreign == "link":
        private.symlink_to(tmp_path)
    elif foreign == "file":
        private.touch()
    else:
        private.mkdir()
        private.chmod(0o777)
    with pytest.raises(UserError, match="not this user's own folder; set MINDSPORE_PALM_CACHE"):
        native.cache_root()


@pytest.mark.parametrize(
    ("cxx", "command"),
    [(None, ["g++"]), ("", ["g++"]), ("  ", ["g++"]), ("clang++", ["clang++"]), ("ccache g++", ["ccache", "g++"])],
)
def test_an_empty_compiler_is_none(environment, cxx, command):
    environment(CXX=cxx)
    assert native.compiler() == command


def test_programs_beside_the_interpreter_are_found_where_nothing_is_activated(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not native.missing_tool(Path(sys.executable).name)
    assert native.missing_tool("no-such-program")
    assert os.environ["PATH"] == "/nowhere"
    monkeypatch.delenv("PATH")
    assert not native.missing_tool(Path(sys.executable).name)
    assert "PATH" not in os.environ


@pytest.fixture
def library(environment, tmp_path):
    """The library of the decoding step as an environment gives it, with nothing built before."""

    def build(**variables):
        environment(**{"MINDSPORE_PALM_CACHE": tmp_path / "cache", **variables})
        cpu_step.library.cache_clear()
        try:
            return cpu_step.library()
        finally:
            cpu_step.library.cache_clear()

    return build


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("cxx", ["no-such-compiler", "false", "true", "/dev/null", "/"])
def test_a_compiler_that_does_not_compile_leaves_mindspores_own_ops(library, cxx):
    assert library(CXX=cxx) is None


def test_a_compiler_that_writes_something_else_leaves_mindspores_own_ops(library, tmp_path):
    """MindSpore would end with a traceback when it loads it."""
    rubbish = program(tmp_path / "c++", 'for word; do last=$word; done; echo rubbish > "$last"')
    assert library(CXX=rubbish) is None


def test_a_cache_that_cannot_be_written_leaves_mindspores_own_ops(library):
    assert library(MINDSPORE_PALM_CACHE="/dev/null") is None


def test_what_is_damaged_in_the_cache_is_built_again(library, tmp_path, monkeypatch):
    source = tmp_path / "small.cc"
    source.write_text('extern "C" int DecodeStep() { return 0; }')
    compiler = program(tmp_path / "c++", f'for word; do last=$word; done; g++ -shared -fPIC {source} -o "$last"')
    (tmp_path / "cache").mkdir()

    def compile_half(name, source, command, work):
        (work / "half").write_bytes(b"half a file")
        return work / "half"

    with monkeypatch.context() as context:
        context.setattr(cpu_library, "_compile", compile_half)
        assert library(CXX=compiler) is None
    (half,) = (tmp_path / "cache").glob("*/*.so")
    assert library(CXX=compiler) == half and half.read_bytes().startswith(b"\x7fELF")


def test_the_library_learns_how_many_processors_there_are(library, monkeypatch):
    monkeypatch.setattr(cpu_library, "processors", lambda: 3)
    library(CXX="false")
    assert os.environ["MINDSPORE_PALM_PROCESSORS"] == "3"
    code = "import os; print(os.environ['MINDSPORE_PALM_PROCESSORS'])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "3\n"


def small_compiler(tmp_path, code='extern "C" int DecodeStep() { return 0; }'):
    """A compiler that builds a small library whatever the source, and logs each call in tmp_path / "calls"."""
    source = tmp_path / "small.cc"
    source.write_text(code)
    count = f"echo >> {tmp_path / 'calls'}"
    return program(
        tmp_path / "c++", f'{count}\nfor word; do last=$word; done; sleep 0.3; g++ -shared -fPIC {source} -o "$last"'
    )


def test_processes_that_need_it_at_once_build_it_once(environment, tmp_path):
    environment(MINDSPORE_PALM_CACHE=tmp_path / "cache", CXX=small_compiler(tmp_path))
    code = "from mindspore_palm.generate.cpu import step; print(step.library())"
    start = functools.partial(subprocess.Popen, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    processes = [start([sys.executable, "-c", code]) for _ in range(2)]
    first, second = (process.communicate(timeout=120)[0] for process in processes)
    assert first == second and Path(first.strip()).exists()
    assert (tmp_path / "calls").read_text() == "\n"


PARTS = {"decoding": cpu_step.cpp_part, "training": fused.cpp_part}


def sources_of(part):
    """All that is compiled into a library: of its own folder, and what libraries share."""
    folders = PARTS[part]().sources, cpu_library.SHARED
    return [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in (".cc", ".h")]


@pytest.mark.parametrize(("part", "source"), [(part, path) for part in PARTS for path in sources_of(part)])
def test_every_source_of_a_library_is_in_its_name(environment, tmp_path, monkeypatch, part, source):
    environment(MINDSPORE_PALM_CACHE=tmp_path / "cache")
    before, copied, is_shared = PARTS[part](), tmp_path / "sources", source.parent == cpu_library.SHARED
    shutil.copytree(source.parent, copied)
    if is_shared:
        monkeypatch.setattr(cpu_library, "SHARED", copied)

    def changed():
        new = PARTS[part]()
        return new if is_shared else dataclasses.replace(new, sources=copied)

    assert changed().cache_folder() == before.cache_folder()
    with open(copied / source.name, "a") as file:
        file.write("\n")
    assert changed().cache_folder() != before.cache_folder()


def test_what_a_killed_build_left_is_removed(library, tmp_path):
    compiler = small_compiler(tmp_path)
    built = library(CXX=compiler)
    built.unlink()
    (built.parent / "build").mkdir()
    (built.parent / "build" / "left").touch()
    assert library(CXX=compiler) == built and built.exists()
    assert sorted(path.name for path in built.parent.iterdir()) == ["decoding.so", "lock"]


def test_a_failed_build_is_reported_with_the_compilers_words_and_its_log(environment, tmp_path):
    failing = program(tmp_path / "c++", "echo 'step.cc:1: error: no such luck' >&2; exit 1")
    environment(MINDSPORE_PALM_CACHE=tmp_path / "cache", CXX=failing)
    part = cpu_step.cpp_part()
    with pytest.raises(UserError) as caught:
        native.load(part)
    log = part.cache_folder() / "build.log"
    assert str(caught.value) == f"{part.title} was not built (see {log}): step.cc:1: error: no such luck"
    assert log.read_text() == "step.cc:1: error: no such luck\n\n"


def test_a_full_disk_is_reported_without_a_log_that_does_not_exist(environment, tmp_path):
    environment(MINDSPORE_PALM_CACHE=tmp_path / "cache")

    def fill_the_disk(command, work):
        (work.parent / "build.log").mkdir()  # cannot be written, as a file on a full disk cannot
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    part = dataclasses.replace(cpu_step.cpp_part(), compile=fill_the_disk)
    with pytest.raises(UserError, match=r"was not built: .*No space left on device$"):
        native.load(part)
    assert not (part.cache_folder() / "build").exists()

"""Compiler and cache of what is built at first use, in environments without a home, a compiler or a writable folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mindspore_palm import native
from mindspore_palm.errors import UserError
from mindspore_palm.generate.cpu import step as cpu_step


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
    """What is loaded from it is code."""
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
    """What the function of a decoding step becomes in an environment, with nothing built."""

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
    """MindSpore would end with a traceback on it."""
    rubbish = program(tmp_path / "c++", 'for word; do last=$word; done; echo rubbish > "$last"')
    assert library(CXX=rubbish) is None


def test_a_cache_that_cannot_be_written_leaves_mindspores_own_ops(library):
    assert library(MINDSPORE_PALM_CACHE="/dev/null") is None


def test_what_is_damaged_in_the_cache_is_built_again(library, tmp_path, monkeypatch):
    source = tmp_path / "small.cc"
    source.write_text('extern "C" int DecodeStep() { return 0; }')
    compiler = program(tmp_path / "c++", f'for word; do last=$word; done; g++ -shared -fPIC {source} -o "$last"')
    (tmp_path / "cache").mkdir()
    with monkeypatch.context() as context:
        context.setattr(cpu_step, "_build", lambda _, built: built.write_bytes(b"half a file"))
        assert library(CXX=compiler) is None
    (half,) = (tmp_path / "cache").iterdir()
    assert library(CXX=compiler) == half and half.read_bytes().startswith(b"\x7fELF")


def test_the_function_is_told_how_many_processors_there_are(library, monkeypatch):
    monkeypatch.setattr(cpu_step, "processors", lambda: 3)
    library(CXX="false")
    assert os.environ["MINDSPORE_PALM_PROCESSORS"] == "3"
    code = "import os; print(os.environ['MINDSPORE_PALM_PROCESSORS'])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "3\n"

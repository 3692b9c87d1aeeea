"""Prompts of the generate command, from arguments, files and standard input."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from mindspore_palm.config import Settings
from mindspore_palm.data.prompt_file import read_prompt
from mindspore_palm.errors import UserError
from mindspore_palm.generate import command
from mindspore_palm.generate.command import GenerateOptions
from mindspore_palm.generate.sampling import Sampling


@pytest.mark.parametrize("content", ["class A:", "class A:\r\n", "\n\t", "漢 \u200d", "a\ufeffb", "\ufeff\ufeffa"])
def test_a_prompt_file_is_read_unchanged_except_for_a_byte_order_mark(tmp_path, content, monkeypatch):
    """As training text is: the model has never seen the mark."""
    text = content.removeprefix("\ufeff")
    (tmp_path / "plain.txt").write_bytes(content.encode())
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_prompt(str(tmp_path / "plain.txt")) == text
    assert read_prompt(str(tmp_path / "marked.txt")) == text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + text.encode())))
    assert read_prompt("-") == text


def test_a_prompt_of_only_a_byte_order_mark_is_empty(tmp_path):
    file = tmp_path / "a\nb.txt"
    file.write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(UserError) as caught:
        read_prompt(str(file))
    assert "is empty" in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("context", [-1, -300, 1])
def test_a_context_too_small_is_refused_by_the_name_of_its_option(monkeypatch, context):
    """Before anything is loaded."""
    monkeypatch.setattr(command, "find_model", lambda folder: folder)
    monkeypatch.setattr(command, "load_settings", lambda file: (Settings(), {}))
    with pytest.raises(UserError, match=f"^--context {context}: .* 2 or more"):
        command._settings_of(GenerateOptions(Path("run"), ("x",), Sampling(), context=context))

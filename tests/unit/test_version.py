"""Version and commit: those of the checkout that runs, or none."""

from __future__ import annotations

import subprocess

from mindspore_palm.version import commit, version


def test_a_checkout_states_its_version_and_commit(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "7.8.9"\n')
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    assert (version(tmp_path), commit(tmp_path)) == ("7.8.9", "")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert commit(tmp_path) == head
    (tmp_path / "pyproject.toml").write_text("changed")
    assert commit(tmp_path) == f"{head}+changes"


def test_a_broken_repository_has_no_commit(tmp_path):
    (tmp_path / ".git").write_text("gitdir: nowhere")
    assert commit(tmp_path) == ""

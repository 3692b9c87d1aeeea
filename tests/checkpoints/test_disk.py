"""A full disk and a read-only disk are reported, and the run resumes from the last checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints.command import write_text

SCRIPT = Path(__file__).with_name("small_disk.py")
UNSHARE = ["unshare", "-m"] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["unshare", "-rm"]


@pytest.mark.slow
def test_a_disk_that_fills_up_and_becomes_read_only(tmp_path, request):
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"]).returncode:
        pytest.skip("mounting a small disk needs permission (unshare -m)")
    done = subprocess.run([*UNSHARE, sys.executable, SCRIPT, write_text(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{done.stdout.strip()}")

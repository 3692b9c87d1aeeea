"""Lines that one thread adds while another one writes are all written, each once."""

from __future__ import annotations

import contextlib
import threading

import pytest

from mindspore_palm.train.log import growing_file as module


@pytest.fixture
def file(tmp_path):
    file = module.GrowingFile(tmp_path / "metrics.csv", ["head\n"])
    yield file
    file.close()


def while_writing(monkeypatch, change):
    """Starts ``change`` in another thread once the next full file is written; returns the threads."""
    real, threads = module.write_atomically, []

    @contextlib.contextmanager
    def slow(path):
        with real(path) as stream:
            yield stream
        if not threads:
            threads.append(threading.Thread(target=change))
            threads[0].start()
            threads[0].join(0.2)

    monkeypatch.setattr(module, "write_atomically", slow)
    return threads


def test_a_line_added_during_a_write_is_written_next(file, tmp_path, monkeypatch):
    threads = while_writing(monkeypatch, lambda: file.add("row\n"))
    file.write()
    threads[0].join()
    assert file.unwritten == 1
    file.write()
    assert (tmp_path / "metrics.csv").read_text() == "head\nrow\n" and file.unwritten == 0


def test_a_line_replaced_during_a_write_is_written_next(file, tmp_path, monkeypatch):
    threads = while_writing(monkeypatch, lambda: file.replace_last("HEAD\n"))
    file.write()
    threads[0].join()
    file.write()
    assert (tmp_path / "metrics.csv").read_text() == "HEAD\n"


def test_lines_of_two_threads_are_all_there(file, tmp_path):
    ends = threading.Event()

    def sync():
        while not ends.is_set():
            file.sync()

    thread = threading.Thread(target=sync)
    thread.start()
    rows = [f"{number}\n" for number in range(300)]
    for row in rows:
        file.add(row)
        file.write()
    ends.set()
    thread.join()
    assert (tmp_path / "metrics.csv").read_text().splitlines(keepends=True) == ["head\n", *rows]

"""Each stage of a preparation has a progress bar, and none needs more memory for more text."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mindspore_palm.config import DataConfig
from mindspore_palm.data import bars, prepare_text
from mindspore_palm.data.prepare import _ahead

ROOT = Path(__file__).resolve().parents[2]
STATUS = Path("/proc/self/status")
MOST_GROWTH = 3  # MiB; the text grows by 6 MB, and its tokens by as much
MEASURED = """
import sys
from mindspore_palm.config import DataConfig
from mindspore_palm.data import prepare
from mindspore_palm.machine import peak_memory
sys.modules["mindspore_palm.data.prepare"].SHARD_BYTES = 2**18
data = DataConfig(path=sys.argv[1], prepared=sys.argv[2], tokenizer=sys.argv[3], validation_fraction=0.2)
prepare(data, 320, progress=False)
print(peak_memory())
"""


@pytest.mark.skipif(not STATUS.exists(), reason="a system without /proc")
def test_the_memory_of_a_preparation_does_not_grow_with_the_text(tmp_path, tokenizer, code):
    peaks = []
    for megabytes in (1, 7):
        file = tmp_path / f"{megabytes}.jsonl"
        count = megabytes * 10**6 // len(code * 20)
        file.write_text("".join(json.dumps({"text": f"{i}{code * 20}"}) + "\n" for i in range(count)))
        command = [sys.executable, "-c", MEASURED, file, tmp_path / "p", tokenizer.model_file]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout) / 2**20)
    assert peaks[1] - peaks[0] < MOST_GROWTH, f"peak of resident memory in MiB: {peaks}"


@pytest.fixture
def shown(monkeypatch):
    """Stages whose bars were shown, with the share of the total that each reached."""
    stages = []

    class Bar:
        def __init__(self, total, desc, disable, **_):
            self.total, self.stage, self.done = total, desc, 0
            assert disable is None  # shown on a terminal

        def __enter__(self):
            return self

        def __exit__(self, *_):
            stages.append((self.stage, self.done / self.total))

        def update(self, count):
            self.done += count

    monkeypatch.setattr(bars, "tqdm", Bar)
    return stages


def test_each_stage_has_a_bar(tmp_path, shown, code):
    file = tmp_path / "a.txt"
    file.write_text(code * 100, newline="")
    prepare_text(DataConfig(path=str(file), prepared=str(tmp_path / "p"), validation_fraction=0.2), 300)
    stages = ["hashing", "reading", "tokenizer", "training the tokenizer", "encoding", "hashing"]
    assert [stage for stage, _ in shown if stage != "reading"] == [stage for stage in stages if stage != "reading"]
    assert "reading" in dict(shown)
    assert all(share == pytest.approx(1) for stage, share in shown)


def test_a_mixture_has_bars_before_its_sources_are_prepared(tmp_path, shown, code):
    sources = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n" + code * 100, newline="")
        sources.append({"path": str(tmp_path / f"{name}.txt"), "weight": 1})
    prepare_text(DataConfig(mixture=sources, prepared=str(tmp_path / "p"), validation_fraction=0.2), 300)
    first = [stage for stage, _ in shown[: [stage for stage, _ in shown].index("training the tokenizer")]]
    assert [first.count(stage) for stage in ("hashing", "tokenizer")] == [2, 2] and "reading" in first


def test_the_next_shard_is_read_while_one_is_encoded():
    read = [threading.Event() for _ in range(3)]

    def shards():
        for number in range(3):
            read[number].set()
            yield [number]

    taken = []
    for (number,) in _ahead(shards()):
        assert read[min(number + 1, 2)].wait(10)
        taken.append(number)
    assert taken == [0, 1, 2]


def test_an_error_of_the_reader_comes_after_the_shards_before_it():
    def shards():
        yield ["first"]
        raise OSError("the disk is gone")

    taken = []
    with pytest.raises(OSError, match="the disk is gone"):
        for shard in _ahead(shards()):
            taken += shard
    assert taken == ["first"]

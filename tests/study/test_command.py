"""``run/study.py`` as a user calls it: what it refuses, and the page that it makes of results alone."""

from __future__ import annotations

import importlib
import json

import pytest
from study.small import write_study
from study.test_runner import NOW, TOKENS, Text

from mindspore_palm.errors import UserError
from mindspore_palm.study import command
from mindspore_palm.study.file import read_study
from mindspore_palm.study.page import page


@pytest.fixture
def call(monkeypatch):
    """The script, called with arguments."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["study.py", *map(str, arguments)])
        importlib.import_module("run.study").main()

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name a study, such as yaml/studies/article.yaml, or a results.json with --page"),
        (["a.yaml", "--page", "b.json"], "name a study, such as yaml/studies/article.yaml, or a results.json"),
        (["--page", "b.json", "--quick"], "--page takes no other option; leave out all others"),
        (["a.yaml", "--only-times", "--jobs", "2"], "--only-times trains nothing; leave out --jobs"),
        (["nowhere.yaml"], "there is no study nowhere.yaml; those of the project are in yaml/studies/"),
        (["--page", "nowhere.json"], "nowhere.json: No such file or directory; run a study first, whose folder has a"),
    ],
)
def test_a_mistake_is_one_sentence(call, arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert str(caught.value).startswith(sentence) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{}", "[1]", "no JSON", "{}}"])
def test_a_page_is_made_of_results_only(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"is not the results\.json of a study$"):
        command.publish(tmp_path / "results.json")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_the_page_is_beside_the_folder_of_its_results(tmp_path, monkeypatch, call):
    from study.small import FakeTrainer

    from mindspore_palm.study import runner as module
    from mindspore_palm.study.results import results
    from mindspore_palm.study.store import Store

    monkeypatch.setattr(module, "Trainer", FakeTrainer)
    monkeypatch.setattr(module, "measure", lambda task, _: {name: [1.0, 1.5] for name in task.variants})
    study = read_study(write_study(tmp_path))
    store = Store(tmp_path / "out", NOW, TOKENS)
    parts = module.Runner(study, store, Text()).run()
    file = tmp_path / "docs" / "results" / "results.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(results(study, False, store, *parts)))
    call("--page", file)
    assert (tmp_path / "docs" / "results.md").read_text() == page(json.loads(file.read_text()))
    assert {path.name for path in file.parent.iterdir()} >= {"results.json", "differences.png", "compute.png"}

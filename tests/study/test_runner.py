"""Runs that are stopped anywhere and started again, and results that are never mixed."""

from __future__ import annotations

import json

import pytest
from study.small import FakeTrainer, write_study

from mindspore_palm.errors import UserError
from mindspore_palm.study import runner as module
from mindspore_palm.study.file import read_study
from mindspore_palm.study.page import page
from mindspore_palm.study.pictures import draw
from mindspore_palm.study.report import report
from mindspore_palm.study.results import results
from mindspore_palm.study.runner import Finished, Runner, best_rates
from mindspore_palm.study.runs import tuning
from mindspore_palm.study.store import HEADER, RUNS, Store, code_of, locked_study
from mindspore_palm.study.wording import agreement, all_rows, claim_verdict

NOW = {"code": "c", "text": "t", "machine": "m", "libraries": "l"}


class Stop(BaseException):
    """A process that ends."""


TOKENS = {"train": 10_000, "held_out": 500}


class Text:
    train, validation = range(10_000), range(500)


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Trainer", FakeTrainer)
    monkeypatch.setattr(module, "measure", lambda task, _: {name: [1.0, 1.5] for name in task.variants})
    return read_study(write_study(tmp_path))


def run(study, folder, stop_after=None):
    """results.json of a study that is run in a folder; stops after so many results."""
    store, left = Store(folder, NOW, TOKENS), stop_after
    write = store.write

    def write_and_stop(*arguments):
        nonlocal left
        write(*arguments)
        left = None if left is None else left - 1
        if left == 0:
            raise Stop

    store.write = write_and_stop
    parts = Runner(study, store, Text()).run()
    return json.loads(json.dumps(results(study, False, store, *parts)))


def test_stopped_after_any_result_it_resumes_to_the_same_results_and_does_nothing_twice(study, tmp_path):
    FakeTrainer.calls = 0
    expected, trained = run(study, tmp_path / "at once"), FakeTrainer.calls
    tasks = len(list((tmp_path / "at once" / RUNS).iterdir()))
    FakeTrainer.calls, stops = 0, 0
    found = None
    while found is None and stops <= tasks:
        try:
            found = run(study, tmp_path / "stopped", stop_after=1)
        except Stop:
            stops += 1
    assert found == expected
    assert stops == tasks and FakeTrainer.calls == trained


def test_times_are_measured_when_no_job_trains(study, tmp_path, monkeypatch):
    events = []

    class Serial:
        """Jobs that train one after the other."""

        def __enter__(self):
            events.append("start")
            return self

        def __exit__(self, *_):
            events.append("end")

        def results(self, tasks):
            for task in tasks:
                yield task, module.train(FakeTrainer(task.settings[0], Text()), task), 1.0

    def measure(task, _):
        events.append("measure")
        return {name: [1.0, 1.5] for name in task.variants}

    monkeypatch.setattr(module, "measure", measure)
    Runner(study, Store(tmp_path / "out", NOW, TOKENS), Text(), Serial()).run()
    measured = events.index("measure")
    assert events[:measured].count("start") == events[:measured].count("end") > 0
    assert events[measured:] == ["measure"] * len(events[measured:])


def test_an_unfinished_result_counts_as_none(study, tmp_path):
    expected = run(study, tmp_path / "out")
    kept = sorted((tmp_path / "out" / RUNS).iterdir())
    kept[0].rename(kept[0].with_name(kept[0].name + ".123.tmp"))  # as a kill leaves it
    kept[1].unlink()
    assert run(study, tmp_path / "out") == expected


@pytest.mark.parametrize("what", NOW)
def test_results_of_another_fingerprint_are_refused(study, tmp_path, what):
    run(study, tmp_path / "out")
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.json")}
    with pytest.raises(
        UserError, match=rf"is of other {what} \({what[0]} there, x here\), and a study never mixes two"
    ):
        Store(tmp_path / "out", {**NOW, what: "x"}, TOKENS)
    assert before == {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.json")}


def elsewhere(study, folder, **changes):
    """results.json of a study whose networks were trained before, with times of another machine, text and Python."""
    now = {**NOW, "machine": "laptop", "text": "another", "libraries": "newer", **changes}
    store = Store(folder, now, {"train": 1, "held_out": 1}, elsewhere=True)
    return results(study, False, store, *Runner(study, store, Text()).run())


def test_times_of_networks_that_were_trained_on_another_machine(study, tmp_path, monkeypatch):
    expected = run(study, tmp_path / "out")
    for file in (tmp_path / "out" / RUNS).glob("step_time*"):
        file.unlink()
    monkeypatch.setattr(module, "measure", lambda task, _: {name: [2.0, 2.5] for name in task.variants})
    monkeypatch.setattr(module, "Trainer", None)  # nothing is trained
    found = json.loads(json.dumps(elsewhere(study, tmp_path / "out")))
    times, before = found.pop("times"), expected.pop("times")
    assert found == expected and times["seconds"][0]["turns"]["palm"] == [2.0, 2.5]
    assert times["fingerprint"]["libraries"] == "newer" and times["fingerprint"]["machine"].startswith("laptop, ")
    assert before["fingerprint"]["machine"].startswith("m, ") and "text" not in times["fingerprint"]
    with pytest.raises(UserError, match="is of other machine"):  # these times are of the laptop
        elsewhere(study, tmp_path / "out", machine="desk")


def test_only_times_needs_all_networks_of_the_same_code(study, tmp_path):
    with pytest.raises(UserError, match=r"holds no study; leave out --only-times to train its networks here$"):
        elsewhere(study, tmp_path / "nothing")
    run(study, tmp_path / "out")
    with pytest.raises(UserError, match="is of other code"):
        elsewhere(study, tmp_path / "out", code="x")
    next((tmp_path / "out" / RUNS).glob("gelu-a-seed1*")).unlink()
    with pytest.raises(UserError, match=r"gelu, a, seed 1, rate 0\.05 is not trained; finish the study on the machine"):
        elsewhere(study, tmp_path / "out")


def test_a_single_result_of_another_fingerprint_is_refused(study, tmp_path):
    run(study, tmp_path / "out")
    file = next((tmp_path / "out" / RUNS).iterdir())
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "fingerprint": {**NOW, "code": "x"}}))
    with pytest.raises(UserError, match="is of other code"):
        run(study, tmp_path / "out")


@pytest.mark.parametrize(("content", "sentence"), [(b"{", "is damaged; delete it"), (b"{}", "is of other code")])
def test_a_damaged_result_is_one_sentence(study, tmp_path, content, sentence):
    run(study, tmp_path / "out")
    next((tmp_path / "out" / RUNS).iterdir()).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        run(study, tmp_path / "out")


def test_a_result_under_the_name_of_another_is_refused(study, tmp_path):
    run(study, tmp_path / "out")
    first, second = sorted((tmp_path / "out" / RUNS).iterdir())[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match="is not the result that its name says; delete it"):
        run(study, tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds files that are not a study's; choose another --output"):
        Store(tmp_path, NOW, TOKENS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="this is a file, not a folder"), locked_study(tmp_path / "thesis.txt"):
        pass


def test_two_processes_do_not_run_one_study(tmp_path):
    refused = pytest.raises(UserError, match="another process runs the study")
    with locked_study(tmp_path / "out"), refused, locked_study(tmp_path / "out"):
        pass


def test_the_fingerprint_of_code_sees_what_trains_and_not_what_reports(tmp_path):
    for name in ("model/palm.py", "train/step.py", "study/trainer.py", "study/report.py", "cli.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    before = code_of(tmp_path)
    for name, changes in (("study/report.py", False), ("cli.py", False), ("model/palm.py", True)):
        (tmp_path / name).write_text("x = 2\n")
        assert (code_of(tmp_path) != before) is changes, name


def test_the_better_rate_is_chosen_and_a_diverged_one_is_not(study):
    tasks = [task for task in tuning(study) if task.variant == "palm"]
    for losses, best in (((2.0, 1.0), 0.05), ((1.0, 2.0), 0.01), ((1.0, 1.0), 0.01), ((2.0, None), 0.01)):
        tuned = [
            Finished(task, {"loss": loss or 0.5, "diverged": loss is None})
            for task, loss in zip(tasks, losses, strict=True)
        ]
        assert best_rates(tuned) == {("palm", "a"): best}


class TestWhatIsSaid:
    @pytest.fixture
    def found(self, study, tmp_path):
        return run(study, tmp_path / "out")

    def row(self, found, measure, variant="gelu", size="a"):
        rows = [r for r in all_rows(found) if (r["measure"], r["variant"], r["size"]) == (measure, variant, size)]
        return rows[0]

    def test_a_difference_has_interval_verdict_and_its_compute(self, found):
        row = self.row(found, "loss")
        assert row["value"] == pytest.approx(0.02 + 0.001 * (1 + 0.5403 - 0.4161) / 3, abs=1e-6)  # means of cos 0, 1, 2
        assert 0 < row["low"] < row["value"] < row["high"] and row["verdict"] == "holds"
        assert row["more_compute"]["value"] == pytest.approx(22.6, abs=0.5)  # e^(0.0204 / 0.1) - 1
        assert found["fit"]["slope"] == pytest.approx(0.1, abs=1e-6)

    def test_the_tuned_rate_is_shown_with_all_others(self, found):
        assert all(row["chosen"] == 0.05 and set(row["losses"]) == {"0.01", "0.05"} for row in found["tuning"])
        assert all(row["at_edge"] for row in found["tuning"])

    def test_learned_positions_are_said_to_end(self, found):
        assert self.row(found, "loss_beyond", "learned")["verdict"] == "cannot be read"

    def test_equal_bytes_do_not_support_a_saving(self, found):
        assert self.row(found, "state_bytes")["verdict"] == "does not follow"

    def test_a_grid_of_one_rate_tunes_nothing_and_says_so(self, study, tmp_path):
        one = study.model_copy(update={"rates": study.rates.model_copy(update={"grid": [0.02]})})
        found = run(one, tmp_path / "one rate")
        assert found["tuning"] == [] and "the same peak learning rate, 0.02: none was tuned" in report(found)
        assert all("lr0.02" in file.name for file in (tmp_path / "one rate" / RUNS).glob("*seed*"))

    def test_only_times_depend_on_the_clock(self, found):
        assert {row["measure"] for row in found["times"]["comparisons"]} == {"step_time"}
        assert "seconds" not in json.dumps({name: part for name, part in found.items() if name != "times"})

    def test_a_network_that_diverged_is_shown_as_such(self, study, tmp_path, monkeypatch):
        original = FakeTrainer.run

        def diverge(self, seed, rate, beyond):
            result = original(self, seed, rate, beyond)
            bad = self.settings.model.mlp == "gelu" and seed == 1
            return result if not bad else type(result)(float("nan"), float("nan"), [], True, {})

        monkeypatch.setattr(FakeTrainer, "run", diverge)
        found = run(study, tmp_path / "diverged")
        row = self.row(found, "loss")
        assert row["verdict"] == "diverged" and row["diverged_seeds"] == [1] and "value" not in row
        assert "diverged with seeds 1" in report(found) and "NaN" not in json.dumps(found)

    def test_report_page_and_pictures_are_made_of_it(self, found, tmp_path):
        assert "held-out loss, gelu against palm, b | higher | +0.02" in report(found, found)
        text = page(found)
        assert text == page(json.loads(json.dumps(found))) and "| SwiGLU | better |" in text
        for file in draw(found, tmp_path):
            assert file.read_bytes().startswith(b"\x89PNG")
            if file.name != "decoding.png":
                assert f"results/{file.name}" in text or file.name in ("step_time.png",)

    def test_a_quick_run_is_held_against_the_page(self, found):
        other = json.loads(json.dumps(found))
        lines = agreement(other, found)
        assert lines and all(line[-1] == "yes" for line in lines)
        for row in all_rows(other):
            if row["measure"] == "loss":
                row["value"] = -row["value"]
        assert [line[-1] for line in agreement(other, found)].count("NO") == 1
        other["comparisons"] = []
        assert all(line[2:] == ["not made here", ""] for line in agreement(other, found))

    def test_a_size_at_which_the_page_sees_nothing_says_nothing(self, found):
        """The effect is shown at b alone, and a run of a cannot repeat it; one of a size that the page lacks can."""
        other = json.loads(json.dumps(found))
        self.row(found, "loss", size="a").update(low=-1.0, high=1.0)
        other["comparisons"] = [row for row in other["comparisons"] if (row["measure"], row["size"]) == ("loss", "a")]
        assert [line[2:] for line in agreement(other, found) if "held-out loss" in line[0]] == [["not made here", ""]]
        other["comparisons"][0]["size"] = "z"
        assert [line[-1] for line in agreement(other, found) if "held-out loss" in line[0]] == ["yes"]


@pytest.mark.parametrize(
    ("verdicts", "claim"),
    [
        (["holds", "holds", "measured"], "holds"),
        (["holds", "not seen at this size"], "holds in part"),
        (["holds", "does not follow"], "holds in part"),
        (["not seen at this size", "does not follow"], "does not follow"),
        (["not seen at this size", "measured"], "not seen at this size"),
        (["diverged"], "diverged"),
        (["measured"], "measured"),
    ],
)
def test_the_verdict_of_a_claim(verdicts, claim):
    assert claim_verdict([{"verdict": verdict} for verdict in verdicts]) == claim


def test_the_header_names_code_text_machine_and_libraries(study, tmp_path):
    run(study, tmp_path / "out")
    assert json.loads((tmp_path / "out" / HEADER).read_text()) == {**NOW, "tokens": TOKENS}

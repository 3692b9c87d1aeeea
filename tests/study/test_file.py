"""A study's file: what it means, and each thing that it may not say."""

from __future__ import annotations

import pytest
from study.small import SMALL, small, write_study

from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.study.equal import cost, equal_d_ff
from mindspore_palm.study.file import read_study
from mindspore_palm.study.runs import comparing, measuring, tuning, tuning_size

LOSS = SMALL["comparisons"][0]


def refused(tmp_path, **changes):
    with pytest.raises(UserError) as caught:
        read_study(write_study(tmp_path, small(**changes)))
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "small.yaml")) and "\n" not in text.split("\n  model")[0]
    return text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"colour": 1}, "colour: a study has nothing of this name"),
        ({"base": "gpt"}, "base: there is no variant 'gpt'"),
        ({"seeds": [0]}, "seeds: List should have at least 2 items"),
        ({"seeds": [0, 0]}, "seeds = [0, 0] has something twice"),
        ({"seeds": [8, 9]}, "seed 9 is in rates.seeds and in seeds: a rate tuned on it would favour its variant"),
        ({"rates": {**SMALL["rates"], "grid": []}}, "rates.grid: List should have at least 1 item"),
        ({"rates": {**SMALL["rates"], "grid": [0.1, 0.1]}}, "rates.grid = [0.1, 0.1] has something twice"),
        ({"rates": {**SMALL["rates"], "sizes": ["z"]}}, "rates.sizes: there is no 'z'; there are a, b, c, d"),
        ({"fit": {"sizes": ["a", "b", "c"]}}, "fit.sizes: List should have at least 4 items"),
        ({"confidence": 1.0}, "confidence: must be less than 1"),
        ({"comparisons": []}, "comparisons: List should have at least 1 item"),
        ({"comparisons": [{**LOSS, "claim": "x"}]}, "comparison 1 (loss of gelu): claim: there is no 'x'"),
        ({"comparisons": [{**LOSS, "variant": "x"}]}, "comparison 1 (loss of x): variant: there is no 'x'"),
        ({"comparisons": [{**LOSS, "sizes": ["x"]}]}, "comparison 1 (loss of gelu): size: there is no 'x'"),
        ({"comparisons": [{**LOSS, "sizes": []}]}, "comparisons.1: measure loss needs sizes"),
        ({"comparisons": [{**LOSS, "variant": "palm"}]}, "this is the base, which everything is compared with"),
        ({"comparisons": [{**LOSS, "measure": "mood"}]}, "comparisons.1.measure: must be 'loss'"),
        ({"comparisons": [{**LOSS, "expects": "good"}]}, "comparisons.1.expects: must be 'higher', 'lower' or"),
        ({"comparisons": [{**LOSS, "about": [3.0, 1.0]}]}, "about [3.0, 1.0] must be two rising numbers"),
        ({"comparisons": [{**LOSS, "machine": "tpu-v4"}]}, "measure loss has no machine"),
        ({"comparisons": [{**LOSS, "measure": "decode_time"}]}, "measure decode_time needs decode"),
        ({"beyond": []}, "set beyond to multiples of data.seq_len, such as [2, 4]"),
        ({"settings": {"train": {"output": "x"}}}, "train.output is not a study's to set; it may set model, optimizer"),
        ({"settings": {"parallel": {"data": 2}}}, "parallel.data is not a study's to set"),
        ({"settings": {"optimizer": {"learning_rate": 0.1}}}, "optimizer.learning_rate is tuned over rates.grid"),
        ({"settings": {"model": {"mlp": "sigmoid"}}}, "model.mlp = 'sigmoid' is not known; choose one of swiglu"),
        (
            {"variants": {**SMALL["variants"], "gelu": {"set": {"model.mlp": "gelu", "model.d_ff": 64}}}},
            "variant gelu at size a: model.d_ff is decided by hold: parameters; leave one of them out",
        ),
        (
            {"variants": {**SMALL["variants"], "gelu": {"set": {"model.vocab_size": 900}}}},
            "variant gelu at size a: no model.d_ff gives it as many parameters as the base has",
        ),
    ],
)
def test_a_mistake_is_one_sentence(changes, sentence, tmp_path):
    assert sentence in refused(tmp_path, **changes)


def test_a_file_that_is_none_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"there is no study .*; those of the project are in yaml/studies/"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8 text at byte 0"):
        read_study(tmp_path / "bytes.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="expected the sections of a study"):
        read_study(tmp_path / "list.yaml")
    (tmp_path / "code.yaml").write_text("title: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match=r"the tag .* is refused"):
        read_study(tmp_path / "code.yaml")


def test_a_study_without_a_quick_one_is_not_run_quickly(tmp_path):
    values = small()
    del values["quick"]
    with pytest.raises(UserError, match="no section quick; run it without --quick"):
        read_study(write_study(tmp_path, values)).quickly()


@pytest.mark.parametrize(
    ("switches", "d_ff"),
    [
        ({"mlp": "gelu"}, 96),  # two kernels of D x F instead of three: 64 * 3/2
        ({"mlp": "geglu"}, 64),
        ({"attention": "multi_head"}, 48),  # 2 (H - 1) K = 48 more columns of D, over three kernels: 64 - 16
        ({"block": "serial"}, 64),
    ],
)
@pytest.mark.parametrize("held", ["parameters", "flops"])
def test_equal_cost_is_exact_arithmetic(switches, d_ff, held):
    base = PaLMConfig(layers=2, d_model=32, heads=4, head_dim=8, d_ff=64, vocab_size=100)
    other = base.model_copy(update=switches)
    assert equal_d_ff(other, base, 16, held) == d_ff
    equal = other.model_copy(update={"d_ff": d_ff})
    assert cost(equal, 16, held) == cost(base, 16, held)


class TestTheSchedule:
    @pytest.fixture
    def study(self, tmp_path):
        return read_study(write_study(tmp_path))

    def test_every_network_is_tuned_over_the_same_rates_and_seeds(self, study):
        tuned = {}
        for task in tuning(study):
            tuned.setdefault((task.variant, task.size), []).append((task.seed, task.rate))
        assert set(tuned) == {("palm", "a"), ("gelu", "a"), ("learned", "a")}
        assert all(pairs == [(9, 0.01), (9, 0.05)] for pairs in tuned.values())

    def test_networks_take_turns_and_the_first_one_changes(self, study):
        chosen = {(variant, "a"): 0.01 for variant in study.variants}
        order = [(task.size, task.seed, task.variant) for task in comparing(study, chosen)]
        assert order[:9] == [
            *(("a", 0, variant) for variant in ("palm", "gelu", "learned")),
            *(("a", 1, variant) for variant in ("gelu", "learned", "palm")),
            *(("a", 2, variant) for variant in ("learned", "palm", "gelu")),
        ]
        assert order[9:13] == [("b", 0, "palm"), ("b", 0, "gelu"), ("b", 1, "gelu"), ("b", 1, "palm")]
        assert order == [(task.size, task.seed, task.variant) for task in comparing(study, chosen)]

    def test_keys_differ_where_results_may(self, study):
        chosen = {(variant, "a"): 0.01 for variant in study.variants}
        tasks = [*tuning(study), *comparing(study, chosen), *measuring(study)]
        assert len({task.key for task in tasks}) == len(tasks)
        longer = study.model_copy(update={"settings": {**study.settings, "train": {"batch_size": 4, "steps": 6}}})
        assert not {task.key for task in tuning(longer)} & {task.key for task in tasks}

    def test_a_rate_is_tuned_at_the_nearest_size(self, study):
        rates = study.rates.model_copy(update={"sizes": ["a", "d"]})
        study = study.model_copy(update={"rates": rates})
        assert [tuning_size(study, "palm", size) for size in "abcd"] == ["a", "a", "d", "d"]

    def test_a_quick_study_is_a_smaller_one(self, study):
        quick = study.quickly()
        assert quick.seeds == [0, 1] and quick.rates.grid == [0.01] and quick.settings["train"]["steps"] == 3
        assert [one.sizes for one in quick.comparisons] == [["a"]] * 5 and quick.fit is None

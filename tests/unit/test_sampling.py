"""Sampling: each setting against its definition."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from mindspore_palm.errors import UserError
from mindspore_palm.generate.sampling import Sampler, Sampling

LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32)) + 3


def drawn(count=4000, seen=(), logits=LOGITS, **settings):
    """The share of each token in the draws."""
    sampler = Sampler(Sampling(temperature=settings.pop("temperature", 1.0), **settings), 0)
    return np.bincount([sampler(logits, set(seen)) for _ in range(count)], minlength=len(logits)) / count


def test_greedy_takes_the_likeliest():
    assert Sampler(Sampling(), 0)(LOGITS[::-1].copy(), set()) == 4


def test_draws_follow_the_probabilities():
    """Within 4 standard deviations of 4,000 draws."""
    np.testing.assert_allclose(drawn(), [0.4, 0.3, 0.15, 0.1, 0.05], atol=4 * 0.5 / 4000**0.5)


def test_temperature():
    sharp = np.array([0.4, 0.3, 0.15, 0.1, 0.05]) ** 2
    np.testing.assert_allclose(drawn(temperature=0.5), sharp / sharp.sum(), atol=0.032)
    assert drawn(temperature=1e-300)[0] == 1.0


def test_top_k():
    np.testing.assert_allclose(drawn(top_k=2), [4 / 7, 3 / 7, 0, 0, 0], atol=0.032)
    assert drawn(top_k=1)[0] == 1.0
    assert (drawn(top_k=50) > 0).all()


def test_top_p_takes_the_fewest_that_reach_it():
    np.testing.assert_allclose(drawn(top_p=0.6), [4 / 7, 3 / 7, 0, 0, 0], atol=0.032)
    np.testing.assert_allclose(drawn(top_p=0.75), [8 / 17, 6 / 17, 3 / 17, 0, 0], atol=0.032)
    assert drawn(top_p=0.01)[0] == 1.0
    shuffled = LOGITS[[4, 0, 3, 1, 2]]
    np.testing.assert_allclose(drawn(top_p=0.6, logits=shuffled), [0, 4 / 7, 0, 3 / 7, 0], atol=0.032)


def test_top_p_counts_what_top_k_left():
    """Three tokens have 0.85, of which 0.4 is a share of 0.47: top_p = 0.6 takes a second token, 0.45 does not."""
    assert (drawn(top_k=3, top_p=0.6)[:2] > 0).all() and drawn(top_k=3, top_p=0.6)[2] == 0
    assert drawn(top_k=3, top_p=0.45)[0] == 1.0


def test_repetition_penalty():
    """arXiv 1909.05858: the logit of a token that occurred is divided, a negative one multiplied."""
    logits = np.array([2.0, 1.5, -1.0, -1.5], np.float32)
    greedy = Sampler(Sampling(repetition_penalty=1.5), 0)
    assert greedy(logits, set()) == 0
    assert greedy(logits, {0}) == 1
    assert Sampler(Sampling(repetition_penalty=1.2), 0)(logits, {0}) == 0
    assert greedy(logits[2:].copy(), {0}) == 0  # -1.5 and -1.5: the first
    assert Sampler(Sampling(repetition_penalty=2.0), 0)(logits[2:].copy(), {0}) == 1
    np.testing.assert_array_equal(logits, np.array([2.0, 1.5, -1.0, -1.5], np.float32))  # not written to


def test_seeds_and_prompts_have_different_draws():
    def draws(seed, number):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), number)
        return [sampler(LOGITS, set()) for _ in range(50)]

    assert draws(1, 0) == draws(1, 0)
    assert len({tuple(draws(seed, number)) for seed in (0, 1) for number in (0, 1)}) == 4


@pytest.mark.parametrize(
    "setting",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"stop": ("",)},
    ],
    ids=str,
)
def test_values_out_of_range(setting):
    (name,) = setting
    with pytest.raises(UserError, match=f"^{name} = .*must be"):
        Sampling(**setting)


def test_one_stop_text_needs_no_tuple():
    assert Sampling(stop="\n").stop == ("\n",)


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e300, 1.7e308])
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1.0, 1e300])
def test_extreme_settings_reach_their_limits_and_never_nan(penalty, temperature):
    """A penalty near 0 makes tokens that occurred certain, a huge one makes them impossible; NumPy never warns."""
    logits = np.array([2.0, 1.0, -1.0, -3.0], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = Sampler(Sampling(repetition_penalty=penalty, temperature=temperature), 0)
        drawn = {sampler(logits, {1, 3}) for _ in range(40)}
    if penalty < 1 and temperature < 1e300:
        assert drawn == {1}
    elif temperature == 1.0:
        assert drawn == {0, 1, 2}  # 1 / penalty is nothing beside the others, and 3 cannot come
    elif temperature < 1.0:
        assert drawn == {0}


@pytest.mark.parametrize("text", ["\ud83d", "end\udcff"])
def test_a_stop_text_that_no_text_can_hold_is_refused(text):
    r"""An argument that is not UTF-8 ("\xff") arrives as a lone surrogate, which would never stop anything."""
    with pytest.raises(UserError, match="UTF-8"):
        Sampling(stop=("\n", text))

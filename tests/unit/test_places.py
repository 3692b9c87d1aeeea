"""Places of a decoder: sequences that come and go at different steps get the bits that each would get alone."""

from __future__ import annotations

import pytest

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.generate import Generator, Sampling
from mindspore_palm.generate.cpu import step as cpu_step

CONTEXT = 200  # three chunks of 64 tokens and a part of one
LENGTHS = (150, 3, 64, 199, 1, 65, 128, 20)  # of prompts: short, full chunks, one more, and all of the context
SAMPLING = [
    Sampling(max_tokens=8 + 5 * i, temperature=(0.0, 1.0, 1.4)[i % 3], top_p=(1.0, 0.9)[i % 2], seed=i)
    for i in range(len(LENGTHS))
]


@pytest.fixture(scope="module")
def palm(device, tokenizer):
    sizes = dict(layers=2, d_model=16, heads=2, head_dim=8, d_ff=32)
    return PaLM(PaLMConfig(**sizes, vocab_size=tokenizer.vocab_size), seed=6)


@pytest.fixture(scope="module")
def prompts(tokenizer, code):
    tokens = tokenizer.encode(code * 3)
    return [[tokenizer.eod, *tokens[7 * i : 7 * i + n - 1]] for i, n in enumerate(LENGTHS)]


@pytest.fixture(params=["C++", "MindSpore"])
def steps(request, monkeypatch):
    """Both ways to compute a token: the C++ step, and MindSpore's ops where it cannot be built."""
    assert cpu_step.library() is not None, "the tests want g++"
    if request.param == "MindSpore":
        monkeypatch.setattr(cpu_step, "library", lambda: None)


def begin(generator, prompts):
    pairs = zip(prompts, SAMPLING, strict=True)
    return [generator.begin(generator.read_prompt(prompt), sampling) for prompt, sampling in pairs]


def advance(places, chunks):
    """One step; the sequences that end in it leave."""
    for sequence, logits, log_z in places.step(chunks):
        sequence.append_token(logits, log_z)
        if sequence.finished:
            places.leave(sequence)


@pytest.mark.parametrize(("count", "chunks"), [(2, 1), (3, 1), (3, None), (8, 2)])
def test_a_sequence_has_the_same_bits_beside_any_others(palm, tokenizer, prompts, steps, count, chunks):
    """Eight sequences enter 2, 3 or 8 places as soon as one is free, one every second step; windows slide, too."""
    alone = Generator(palm, tokenizer, CONTEXT)
    expected = [alone([prompt], sampling)[0] for prompt, sampling in zip(prompts, SAMPLING, strict=True)]
    generator = Generator(palm, tokenizer, CONTEXT, count)
    places, sequences, step = generator.places(), begin(generator, prompts), 0
    waiting = list(sequences)
    while waiting or places.sequences:
        if waiting and places.free and step % 2 == 0:
            places.enter(waiting.pop(0))
        advance(places, chunks)
        step += 1
        assert step < 500
    for sequence, one in zip(sequences, expected, strict=True):
        assert sequence.result() == one  # tokens, and every bit of their log-probabilities
    assert len({one.text for one in expected}) > 5


def test_a_place_that_was_given_up_holds_nothing_of_its_sequence(palm, tokenizer, prompts, steps):
    """Left while its prompt is read, while it is written, and reused at once by a shorter one."""
    (expected,) = Generator(palm, tokenizer, CONTEXT)([prompts[1]], SAMPLING[1])
    generator = Generator(palm, tokenizer, CONTEXT, 2)
    for moments in (1, 2, 6):
        places = generator.places()
        sequences = begin(generator, prompts)
        places.enter(sequences[0])
        places.enter(sequences[3])
        for _ in range(moments):
            advance(places, 1)
        places.leave(sequences[0])
        assert places.free == 1 and places.sequences == [sequences[3]]
        places.enter(sequences[1])
        while sequences[1] in places.sequences:
            advance(places, 1)
        assert sequences[1].result() == expected


def test_a_long_prompt_does_not_hold_up_the_others(palm, tokenizer, prompts):
    """Its four chunks take four steps, and the other sequence gets a token in each of them."""
    generator = Generator(palm, tokenizer, CONTEXT, 3)
    sequences = begin(generator, prompts)
    places, long, short, shortest = generator.places(), sequences[3], sequences[2], sequences[4]
    places.enter(short)
    advance(places, 1)
    assert len(short.token_ids) == 1
    places.enter(long)
    for step in range(1, 5):
        advance(places, 1)
        assert len(short.token_ids) == 1 + step and len(long.token_ids) == (step == 4)
    places.leave(long)
    long_again = begin(generator, prompts)[0]
    places.enter(long_again)
    advance(places, 1)
    places.enter(shortest)  # what is shorter is read first
    advance(places, 1)
    assert len(shortest.token_ids) == 1 and not long_again.token_ids


def test_there_are_only_so_many_places(palm, tokenizer, prompts):
    generator = Generator(palm, tokenizer, CONTEXT, 1)
    first, second, *_ = begin(generator, prompts)
    places = generator.places()
    assert places.step() == [] and places.free == 1
    places.enter(first)
    with pytest.raises(ValueError, match="None"):
        places.enter(second)
    places.leave(second)  # it has none
    assert places.sequences == [first]

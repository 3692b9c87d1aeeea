"""Generation: how it ends, its independence of the batch, its log-probabilities, and the prompts that it rejects."""

from __future__ import annotations

import codecs
import re

import numpy as np
import pytest
from mindspore import Tensor

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.errors import UserError
from mindspore_palm.generate import Generator, Sampling
from mindspore_palm.generate.cpu import step as cpu_step

CONTEXT = 48
DRAWN = Sampling(max_tokens=30, temperature=1.0, top_p=0.95, seed=3)
PROMPTS = ["def permute(", "x", "        if row % 2 == 0:\n            yield row", "class Tabs:", "# 1234 and 567"]


@pytest.fixture(scope="module")
def palm(device, tokenizer):
    sizes = dict(layers=1, d_model=16, heads=2, head_dim=8, d_ff=32)
    return PaLM(PaLMConfig(**sizes, vocab_size=tokenizer.vocab_size), seed=6)


@pytest.fixture(scope="module")
def alone(palm, tokenizer):
    return Generator(palm, tokenizer, CONTEXT)


@pytest.fixture(scope="module")
def together(palm, tokenizer):
    return Generator(palm, tokenizer, CONTEXT, batch=3)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def test_a_prompt_gets_the_same_text_in_any_batch(alone, together):
    """Five prompts in batches of three; sampled, so that a wrong number of draws would show."""
    many = together(PROMPTS, DRAWN)
    assert [one.text for one in together(PROMPTS[:2], DRAWN)] == [one.text for one in many[:2]]
    first = alone(PROMPTS[:1], DRAWN)[0]
    assert first.token_ids == many[0].token_ids
    assert alone(PROMPTS, DRAWN)[3].token_ids == many[3].token_ids
    assert len({one.text for one in many}) == 5
    assert all(one.finished in ("length", "eod") for one in many)


def test_equal_prompts_of_a_batch_get_different_draws(together):
    assert len({one.text for one in together(["x", "x", "x"], DRAWN)}) == 3


def test_log_probs_are_those_of_the_network_itself(palm, alone, tokenizer):
    """Whatever settings changed the choice."""
    prompt = [tokenizer.eod, *tokenizer.encode("def permute(")]
    sampling = Sampling(max_tokens=12, temperature=0.7, top_k=20, repetition_penalty=1.3, seed=1)
    generation = alone([prompt], sampling)[0]
    assert generation.token_ids == alone(["def permute("], sampling)[0].token_ids  # a text starts a document
    whole = palm(Tensor(np.array([prompt + generation.token_ids], np.int32))).asnumpy()[0]
    for i, (token, log_prob) in enumerate(zip(generation.token_ids, generation.log_probs, strict=True)):
        assert log_prob == pytest.approx(log_softmax(whole[len(prompt) - 1 + i])[token], abs=1e-5)


def test_stream_is_the_text_in_pieces(alone):
    stream, pieces = alone.stream(PROMPTS[0], DRAWN), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            generation = end.value
            break
    assert generation == alone(PROMPTS[:1], DRAWN)[0]
    assert "".join(pieces) == generation.text and len(pieces) > 5
    for piece in pieces:
        assert piece


def test_a_stop_text_ends_it_and_is_left_out(alone, tokenizer):
    free = alone(PROMPTS[:1], DRAWN)[0]
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 3]
    end = free.text.index(stop)
    generation = alone(PROMPTS[:1], Sampling(**{**vars(DRAWN), "stop": (stop,)}))[0]
    assert end > 5 and generation.finished == "stop" and generation.text == free.text[:end]
    assert generation.token_ids == free.token_ids[: len(generation.token_ids)]
    assert stop in tokenizer.decode(generation.token_ids)


def test_the_end_of_the_document_ends_it(palm, alone, tokenizer, monkeypatch):
    """A network whose likeliest token is [eod]: the decoder's logits, with that one raised."""
    write = alone._decoder.write

    def raised(*args):
        logits, log_z = write(*args)
        logits = logits.copy()
        logits[:, tokenizer.eod] = 1e3
        return logits, log_z

    monkeypatch.setattr(alone._decoder, "write", raised)
    generation = alone(["x"], Sampling(max_tokens=9))[0]
    assert generation.finished == "eod" and len(generation.token_ids) == 2
    assert generation.token_ids[-1] == tokenizer.eod and len(generation.log_probs) == 2


def test_a_full_context_slides_by_half(palm, alone, together, tokenizer):
    """Every greedy token is that of a full forward pass over the documented window, also beside a shorter text."""
    prompt = [tokenizer.eod, *tokenizer.encode("def permute(index")]
    generation = alone([prompt], Sampling(max_tokens=2 * CONTEXT))[0]
    window = list(prompt)
    for token in generation.token_ids:
        if len(window) > CONTEXT:
            window = window[-(CONTEXT // 2) :]
        padded = np.zeros((1, CONTEXT), np.int32)
        padded[0, : len(window)] = window
        logits = palm(Tensor(padded)).asnumpy()[0, len(window) - 1]
        assert logits[token] > logits.max() - 1e-5
        window.append(token)
    assert generation.finished == "length" and len(generation.token_ids) == 2 * CONTEXT
    beside = together([[3, 4, 5], prompt], Sampling(max_tokens=2 * CONTEXT))
    assert beside[1].token_ids == generation.token_ids
    assert beside[0].token_ids == alone([[3, 4, 5]], Sampling(max_tokens=2 * CONTEXT))[0].token_ids


def test_refusals(palm, alone, tokenizer):
    few = Sampling(max_tokens=1)
    with pytest.raises(UserError, match="the prompt is empty"):
        alone([""], few)
    with pytest.raises(UserError, match="prompt 2 is empty"):
        alone(["x", []], few)
    with pytest.raises(UserError, match=r"has \d+ tokens, and the context holds 48 tokens: shorten it to at most 47"):
        alone(["x1" * 40], few)
    with pytest.raises(UserError, match="has 1,000,000 characters"):
        alone.stream("x" * 1_000_000, few)
    with pytest.raises(UserError, match="holds 320, and tokens go to 319"):
        alone([[320]], few)
    with pytest.raises(UserError, match="lone surrogate"):
        alone(["\udcff"], few)
    assert alone([[5] * (CONTEXT - 1)], few)[0].token_ids
    other = PaLM(PaLMConfig(layers=1, d_model=16, heads=2, head_dim=8, d_ff=32, vocab_size=64))
    with pytest.raises(UserError, match=r"tiny.model has 320 tokens and the model only 64: it is not the tokenizer"):
        Generator(other, tokenizer)
    with pytest.raises(UserError, match="set them to at least 2 and 1"):
        Generator(palm, tokenizer, context=1)


def test_a_prompt_that_holds_half_a_character_is_named(together):
    with pytest.raises(UserError, match=r"^prompt 2: the text holds a lone surrogate \('\\ud83d' at character 1\)"):
        together(["x", "x\ud83d"], Sampling(max_tokens=1))


def test_weights_that_are_not_finite_are_reported(palm, tokenizer):
    broken = PaLM(palm.config, seed=6)
    broken.embedding.set_data(Tensor(np.full(broken.embedding.shape, np.nan, np.float32)))
    with pytest.raises(UserError, match="not finite"):
        Generator(broken, tokenizer, CONTEXT)(["x"], Sampling(max_tokens=3))
    with pytest.raises(UserError, match=r"^runs/x: the logits for token 1 after prompt 1 are not finite"):
        Generator(broken, tokenizer, CONTEXT, model="runs/x")(["x"] * 2, Sampling(max_tokens=3))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("on_cpp", [True, False])
def test_a_weight_that_is_not_finite_is_reported_by_either_step(palm, tokenizer, monkeypatch, value, on_cpp):
    """One row of the embedding, of a token that is not even in the text: its logit is not finite at every position."""
    if not on_cpp:
        monkeypatch.setattr(cpu_step, "library", lambda: None)
    broken = PaLM(palm.config, seed=6)
    generator = Generator(broken, tokenizer, CONTEXT)
    assert generator(["x"], Sampling(max_tokens=3))[0].token_ids
    stream = generator.stream("x", Sampling(max_tokens=40))
    next(stream)
    embedding = broken.embedding.asnumpy().copy()
    embedding[300] = value
    broken.embedding.set_data(Tensor(embedding))
    with pytest.raises(UserError, match="not finite"):
        list(stream)


@pytest.mark.parametrize("on_cpp", [True, False])
def test_a_text_has_the_same_bits_in_any_batch(palm, tokenizer, monkeypatch, on_cpp):
    """Alone, first, last, beside longer and shorter prompts, in batches of several sizes, and where windows slide."""
    if not on_cpp:
        monkeypatch.setattr(cpu_step, "library", lambda: None)
    sampling = Sampling(max_tokens=CONTEXT + 20, temperature=1.3, seed=3, repetition_penalty=1.1)
    long, short = PROMPTS[2], "x"
    (expected,) = Generator(palm, tokenizer, CONTEXT)([PROMPTS[0]], sampling)
    for batch, prompts in ((2, [PROMPTS[0], long]), (3, [long, short, PROMPTS[0]]), (2, [short, long, PROMPTS[0]])):
        generation = Generator(palm, tokenizer, CONTEXT, batch)(prompts, sampling)[prompts.index(PROMPTS[0])]
        assert generation == expected  # tokens, and every bit of their log-probabilities


def test_draws_depend_on_the_prompt_and_not_on_its_position(together):
    first, second = together(["x", "def permute("], DRAWN)
    assert [second, first] == together(["def permute(", "x"], DRAWN)
    assert together(["class", "x", "x"], DRAWN)[1:] == together(["x", "x", "class"], DRAWN)[:2]
    assert together(["x"], DRAWN)[0] != together(["x"], Sampling(**{**vars(DRAWN), "seed": 4}))[0]


def test_the_end_of_a_document_is_no_repetition(palm, tokenizer, monkeypatch):
    """[eod] precedes every prompt; the penalty for repetition does not keep texts from ending."""
    generator = Generator(palm, tokenizer, CONTEXT)
    read = generator._decoder.read

    def with_eod_just_ahead(contexts):
        logits, log_z = read(contexts)
        logits = logits.copy()
        logits[:] = 1.0
        logits[:, tokenizer.eod] = 1.1
        return logits, log_z

    monkeypatch.setattr(generator._decoder, "read", with_eod_just_ahead)
    assert generator(["x"], Sampling(max_tokens=3, repetition_penalty=2.0))[0].finished == "eod"


def test_a_prompt_that_ends_in_white_space_is_continued_from_the_boundary(palm, alone, tokenizer, monkeypatch):
    """Where greedy decoding writes white space after a prompt, the prompt with that white space gets the same text."""
    prompt = "        if row"
    word = next(t for t in range(320) if re.fullmatch(" [a-z]{2,}", tokenizer.decode([t])))
    text = tokenizer.decode([word])
    read, write = alone._decoder.read, alone._decoder.write

    def prefer_the_word(results):
        logits, log_z = results
        logits = logits.copy()
        logits[:, word] = 50.0
        return logits, log_z

    monkeypatch.setattr(alone._decoder, "read", lambda *args: prefer_the_word(read(*args)))
    monkeypatch.setattr(alone._decoder, "write", lambda *args: prefer_the_word(write(*args)))
    (without,) = alone([prompt], Sampling(max_tokens=3))
    (with_space,) = alone([prompt + " "], Sampling(max_tokens=3))
    assert without.text == 3 * text and with_space.text == (3 * text).removeprefix(" ")
    assert with_space.token_ids == without.token_ids and with_space.opening == []


@pytest.mark.parametrize("white_space", [" ", "  ", "\n", "\n\n    ", "\t", "\u3000", " \u2028 "])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_text_begins_after_all_of_its_prompt(alone, tokenizer, white_space, temperature):
    """White space at the end of the prompt is neither repeated nor lost."""
    sampling = Sampling(max_tokens=6, temperature=temperature, seed=2)
    for prompt in ("def" + white_space, white_space):
        (generation,) = alone([prompt], sampling)
        tokens = [*tokenizer.encode(prompt.rstrip()), *generation.opening, *generation.token_ids]
        assert tokenizer.decode_bytes(tokens).startswith(prompt.encode())
        written = codecs.getincrementaldecoder("utf-8")("replace")  # without an incomplete last character
        assert written.decode(tokenizer.decode_bytes(tokens)[len(prompt.encode()) :]) == generation.text
        assert len(generation.token_ids) == len(generation.log_probs)
        assert len(generation.token_ids) == 6 or generation.finished == "eod"
        pieces = "".join(alone.stream(prompt, sampling))
        assert pieces == generation.text

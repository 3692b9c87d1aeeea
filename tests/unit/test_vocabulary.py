"""Tokenizers with fewer or more tokens than the model has rows: one rule in every command."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from mindspore_palm import PaLM, PaLMConfig, Tokenizer
from mindspore_palm.config import Settings
from mindspore_palm.data.vocabulary import fit_vocabulary
from mindspore_palm.errors import UserError
from mindspore_palm.evaluate.scorer import Scorer, ScoringRow
from mindspore_palm.generate import Generator, Sampling

SIZES = dict(layers=1, d_model=16, heads=2, head_dim=8, d_ff=32)
TOKENS, ROWS = 320, 352  # of the tokenizer, of the model; the table has 4 more rows


@pytest.fixture(scope="module")
def palm(device):
    """A model whose rows without a token would get the largest logits if they were not masked."""
    palm = PaLM(PaLMConfig(**SIZES, vocab_size=ROWS, vocab_multiple=89), seed=6)
    table = 10 * palm.embedding.asnumpy()
    table[TOKENS:] *= 10
    palm.embedding.set_data(Tensor(table))
    return palm


@pytest.fixture(scope="module")
def folder(palm, tokenizer, tmp_path_factory):
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of

    folder = tmp_path_factory.mktemp("vocabulary") / "final"
    settings = Settings.model_validate({"model": palm.config, "data": {"seq_len": 32}})
    save_model(folder, weights_of(palm), tokenizer.serialized, settings, step=1)
    return folder


@pytest.fixture(scope="module")
def larger(tokenizer, code, tmp_path_factory):
    """A tokenizer with more tokens than the model of ``few`` has rows."""
    return Tokenizer.train([code] * 3, 330, tmp_path_factory.mktemp("larger") / "larger.model")


@pytest.fixture(scope="module")
def few(device, larger, tmp_path_factory):
    """Folder of a model with fewer rows than its tokenizer has tokens."""
    from mindspore_palm.checkpoint.model_folder import save_model, weights_of

    folder = tmp_path_factory.mktemp("few") / "final"
    config = PaLMConfig(**SIZES, vocab_size=TOKENS, vocab_multiple=16)
    settings = Settings.model_validate({"model": config, "data": {"seq_len": 32}})
    save_model(folder, weights_of(PaLM(config)), larger.serialized, settings, step=1)
    return folder


def known_log_probs(palm, ids):
    """Log-probabilities over only the tokenizer's tokens: float64 [S, 320]."""
    logits = palm(Tensor([ids], dtype=None).astype("int32")).asnumpy()[0, :, :TOKENS].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_fit_vocabulary():
    config = PaLMConfig(**SIZES, vocab_size=352, vocab_multiple=89)
    fitted = fit_vocabulary(config, 320, "t.model")
    assert (fitted.vocab_size, fitted.padded_vocab) == (320, config.padded_vocab) == (320, 356)
    assert fit_vocabulary(config, 352, "t.model") == config
    with pytest.raises(UserError, match=r"t.model has 353 tokens and the model only 352: .*; use that one"):
        fit_vocabulary(config, 353, "t.model")  # a padding row of the table is not a token


@pytest.mark.parametrize("decoder", ["C++ step", "MindSpore's ops"])
def test_rows_without_a_token_are_never_generated(palm, tokenizer, decoder, monkeypatch):
    from mindspore_palm.generate.cpu import step as cpu_step

    if decoder == "MindSpore's ops":
        monkeypatch.setattr(cpu_step, "usable", lambda _: False)
    generator = Generator(palm, tokenizer, 48)
    prompt = [tokenizer.eod, *tokenizer.encode("def ")]
    for sampling in (Sampling(max_tokens=20), Sampling(max_tokens=20, temperature=3.0, seed=2)):
        generation = generator([prompt], sampling)[0]
        assert max(generation.token_ids) < TOKENS
        ids = [*prompt, *generation.token_ids]
        expected = known_log_probs(palm, ids[:-1])[len(prompt) - 1 :]
        expected = expected[np.arange(len(generation.token_ids)), generation.token_ids]
        np.testing.assert_allclose(generation.log_probs, expected, atol=2e-4)


def test_rows_without_a_token_get_no_probability_in_an_evaluation(palm, tokenizer):
    tokens = np.array(tokenizer.encode("def permute(index, size):"), np.int32)
    score = next(Scorer(palm, tokenizer, 32, batch=1)([ScoringRow(tokens, 0)]))
    expected = known_log_probs(palm, [tokenizer.eod, *tokens[:-1]])
    nats = -expected[np.arange(len(tokens)), tokens].sum()
    np.testing.assert_allclose(score.nats, nats, rtol=1e-5)


def test_a_fine_tuned_model_has_its_tokenizers_tokens(folder, tmp_path):
    from mindspore_palm.train.finetune import with_model_of_checkpoint

    tuned = {"finetune": {"checkpoint": str(folder)}, "train": {"output": str(tmp_path / "tuned")}}
    model = with_model_of_checkpoint(Settings.model_validate(tuned)).model
    assert (model.vocab_size, model.padded_vocab) == (TOKENS, 356)


def test_a_conversion_keeps_the_table_and_notes_it(folder, tmp_path):
    from safetensors.numpy import load_file

    from mindspore_palm.convert.convert import convert
    from mindspore_palm.convert.model import Options

    printed, formats = [], [("mindspore_palm", folder), ("flaxformer", tmp_path / "tree.safetensors")]
    convert(*formats, Options(shape=(1, 8)), printed.append)
    back = [("flaxformer", tmp_path / "tree.safetensors"), ("mindspore_palm", tmp_path / "back")]
    convert(*back, Options(shape=(1, 8)), printed.append, tokenizer=folder / "tokenizer.model")
    notes = [line for line in printed if "has 320 tokens and the model 3" in line]
    assert len(notes) == 2 and all("treated as padding" in line for line in notes)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    np.testing.assert_array_equal(after["embedding"], before["embedding"], strict=True)


def test_a_tokenizer_with_more_tokens_is_refused_with_the_same_message_everywhere(few, larger, folder, tmp_path):
    from mindspore_palm import load
    from mindspore_palm.checkpoint.model_folder import load_tokenizer
    from mindspore_palm.convert.convert import convert
    from mindspore_palm.convert.model import Options
    from mindspore_palm.evaluate.evaluate import EvaluateOptions, evaluate
    from mindspore_palm.train.finetune import with_model_of_checkpoint

    (tmp_path / "text.txt").write_text("def permute(")
    palm, tuned = load(few), {"finetune": {"checkpoint": str(few)}, "train": {"output": str(tmp_path / "tuned")}}
    formats = [("mindspore_palm", few), ("flaxformer", tmp_path / "tree.safetensors")]
    calls = [
        lambda: Generator(palm, larger),
        lambda: Scorer(palm, larger, 32),
        lambda: load_tokenizer(few),
        lambda: evaluate(str(few), EvaluateOptions(text=[str(tmp_path / "text.txt")]), print),
        lambda: with_model_of_checkpoint(Settings.model_validate(tuned)),
        lambda: convert(*formats, Options(), print),
        lambda: convert(*formats, Options(), print, tokenizer=larger.model_file),
    ]
    for call in calls:
        with pytest.raises(UserError) as caught:
            call()
        assert "has 330 tokens and the model only 320: it is not the tokenizer that the model was" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]

"""Properties read from a model's bytes equal those that SentencePiece's own protobuf module reads."""

import io
import itertools

import pytest
import sentencepiece

from mindspore_palm.data.model_proto import read_properties

model_pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2", reason="needs a matching protobuf")


@pytest.mark.parametrize(
    ("prefix", "extra", "fallback", "normalizer"),
    list(itertools.product([True, False], [True, False], [True, False], ["identity", "nfkc"])),
)
def test_every_property_is_read(prefix, extra, fallback, normalizer):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d"] * 9), model_writer=model, vocab_size=300, hard_vocab_limit=False,
        add_dummy_prefix=prefix, remove_extra_whitespaces=extra, byte_fallback=fallback,
        normalization_rule_name=normalizer, minloglevel=3,
    )  # fmt: skip
    theirs = model_pb2.ModelProto.FromString(model.getvalue())
    ours = read_properties(model.getvalue())
    assert ours.adds_dummy_prefix == theirs.normalizer_spec.add_dummy_prefix == prefix
    assert ours.removes_extra_whitespaces == theirs.normalizer_spec.remove_extra_whitespaces == extra
    assert ours.byte_fallback == theirs.trainer_spec.byte_fallback == fallback
    assert bool(ours.normalizer) == bool(theirs.normalizer_spec.precompiled_charsmap) == (normalizer == "nfkc")
    assert len(ours.losses()) == prefix + extra + (not fallback) + (normalizer == "nfkc")


def test_missing_fields_have_the_defaults_of_the_format():
    theirs = model_pb2.ModelProto()
    ours = read_properties(theirs.SerializeToString())
    assert ours.adds_dummy_prefix == theirs.normalizer_spec.add_dummy_prefix is True
    assert ours.removes_extra_whitespaces == theirs.normalizer_spec.remove_extra_whitespaces is True
    assert ours.byte_fallback == theirs.trainer_spec.byte_fallback is False


@pytest.mark.parametrize("content", [b"\xff", b"\x0a\xff", b"\x0a\x05ab", b"\x0f", b"\x80" * 20])
def test_anything_but_a_protocol_buffer_is_refused(content):
    with pytest.raises(ValueError):
        read_properties(content)

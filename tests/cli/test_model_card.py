"""The card of an exported model: its numbers are those of the run's files, and a card that somebody edited is kept."""

from __future__ import annotations

import csv
import json
import re
import shutil

import pytest
import yaml

TEXT = "".join(f"def f{i}(a, b):\n    return a + {i} * b\n" for i in range(400))
SIZES = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 310}
RUN = [f"model.{name}={size}" for name, size in SIZES.items()]
RUN += ["data.path=text.txt", "data.seq_len=16", "train.batch_size=4", "train.output=run", "train.steps=3"]
PARAMETERS = 310 * 16 + 16 * (2 * 2 * 8 + 2 * 8) + 16 * 32 * 3  # embedding, q k v o, three kernels of SwiGLU


@pytest.fixture(scope="module")
def home(device, tmp_path_factory):
    home = tmp_path_factory.mktemp("card")
    (home / "text.txt").write_text(TEXT)
    return home


@pytest.fixture
def run(door, home):
    if not (home / "run").exists():
        code, _, err = door("train", home, *RUN)
        assert code == 0, err
    return home / "run"


@pytest.fixture
def convert(door, home):
    def convert(*arguments):
        code, _, err = door("convert", home, "--from", *arguments, "--length", 8)
        assert code == 0, err
        return err

    return convert


def parts(file):
    """Front matter and cells of the tables by their name."""
    text = file.read_text()
    front, body = re.match(r"---\n(.*?)---\n(.*)", text, re.S).groups()
    rows = (
        line.strip("| ").split(" | ", 1) for line in body.splitlines() if line.startswith("| ") and "---" not in line
    )
    return yaml.safe_load(front), {row[0]: row[1] for row in rows if len(row) == 2}


def test_its_numbers_are_those_of_the_runs_files(run):
    front, cells = parts(run / "final" / "README.md")
    assert front["library_name"] == "mindspore_palm" and front["license"] == "unknown" and "palm" in front["tags"]
    assert front["language"] == "und"
    assert cells["Parameters"].startswith(f"{PARAMETERS:,} (")
    assert [cells[name] for name in ("Layers", "d_model", "Query heads", "d_ff")] == ["1", "16", "2", "32"]
    with open(run / "metrics.csv", newline="") as lines:
        last = list(csv.DictReader(lines))[-1]
    assert cells["Optimizer steps"] == last["step"] == "3"
    assert cells["Tokens trained on"] == last["tokens"] == str(3 * 4 * 16)
    assert cells["Training loss of the last step"] == f"{last['loss']} nats/token"
    assert cells["Held-out loss"] == f"{last['validation_loss']} nats/token"
    assert cells["Held-out loss per byte"] == f"{last['validation_bits_per_byte']} bits/byte"
    state = json.loads((run / "checkpoints" / "step_000003" / "state.json").read_text())
    for part in ("train", "validation"):
        facts = state["corpus"][part]
        sizes = f"{facts['documents']:,} documents, {facts['bytes']:,} bytes, {facts['tokens']:,} tokens"
        assert cells[f"{part} text"] == f"{sizes} | `{facts['sha256']}`"
    assert state["corpus"]["tokenizer"] in cells["tokenizer"]
    assert cells["gzip -9 on the same text"] == f"{state['corpus']['gzip9_bits_per_byte']:.9g} bits/byte"
    assert cells["Trained with"] == ", ".join(f"{k} {v}" for k, v in state["versions"].items())
    assert cells["`data.path`"] == "text.txt" and cells["`optimizer.name`"] == "adafactor"


def test_folders_above_the_text_are_not_published(home, door):
    """Of an absolute data.path, the card has the name; config.yaml has all of it."""
    code, _, err = door("train", home, *RUN, f"data.path={home / 'text.txt'}", "train.output=absolute", "train.steps=1")
    assert code == 0, err
    final = home / "absolute" / "final"
    assert parts(final / "README.md")[1]["`data.path`"] == "text.txt"
    assert str(home) not in (final / "README.md").read_text()
    assert f"path: {home / 'text.txt'}" in (final / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("format_name", "target", "card"),
    [
        ("mindspore_palm", "again", "again/README.md"),
        ("huggingface-safetensors", "exported", "exported/README.md"),
        ("flaxformer", "tree.safetensors", "tree.safetensors.md"),
        ("mindir", "graph.mindir", "graph.mindir.md"),
    ],
)
def test_every_format_gets_one_with_the_same_numbers(run, home, convert, format_name, target, card):
    convert("run", "--to", format_name, target)
    front, cells = parts(home / card)
    assert (front, cells) == parts(run / "final" / "README.md")
    text = (home / card).read_text()
    assert (f"--from {format_name}" in text) == (format_name in ("huggingface-safetensors", "flaxformer"))


def test_a_checkpoint_has_no_held_out_loss_to_state(run, home, convert):
    convert("run/checkpoints/step_000003", "--to", "of_checkpoint")
    _, cells = parts(home / "of_checkpoint" / "README.md")
    assert cells["Optimizer steps"] == "3" and "Held-out loss" not in cells
    assert "No held-out loss is recorded" in (home / "of_checkpoint" / "README.md").read_text()


def test_nothing_is_invented_about_a_model_whose_training_is_unknown(run, home, convert):
    convert("run", "--to", "flaxformer", "unknown.safetensors")
    convert("flaxformer", "unknown.safetensors", "--to", "imported")
    text = (home / "imported" / "README.md").read_text()
    _, cells = parts(home / "imported" / "README.md")
    assert "Unknown: the file that this model was made from does not record its training." in text
    assert cells.keys().isdisjoint({"Optimizer steps", "Tokens trained on", "Held-out loss", "Trained with"})


@pytest.mark.parametrize(
    "change",
    [
        {"step": "3"},
        {"tokens": None},
        {"loss": 6.1},
        {"corpus": "text"},
        {"corpus": {"train": ["text"]}},
        {"corpus": {"train": {"tokens": "many"}}},
        {"corpus": {"gzip9_bits_per_byte": "2"}},
        {"versions": []},
        {"versions": {"python": 3}},
        {"settings": [1]},
        {"held_out": {"tokens": 1, "nats_per_token": "low", "bits_per_byte": 1.0}},
        {"held_out": {"tokens": 1}},
        {"held_out": 1},
    ],
    ids=str,
)
def test_an_altered_header_makes_the_training_unknown(run, change):
    from mindspore_palm.checkpoint.identity import header_of
    from mindspore_palm.checkpoint.training import TRAINING, Training

    header = header_of(run / "final" / "model.safetensors")
    recorded = json.loads(header[TRAINING])
    assert Training.from_header(header).step == 3
    assert Training.from_header({TRAINING: json.dumps({**recorded, **change})}) is None
    assert Training.from_header({TRAINING: "{"}) is None and Training.from_header({TRAINING: "[1]"}) is None


def test_an_edited_card_is_kept(run, home, convert, door):
    for name, target in (("mindspore_palm", "edited"), ("flaxformer", "edited.safetensors")):
        convert("run", "--to", name, target)
        card = home / target / "README.md" if name == "mindspore_palm" else home / f"{target}.md"
        unchanged = card.read_text()
        assert "was edited" not in convert("run", "--to", name, target, "--overwrite")  # one of ours is replaced
        card.write_text(unchanged.replace("license: unknown", "license: apache-2.0"))
        assert "was edited: it is kept as" in convert("run", "--to", name, target, "--overwrite")
        assert card.read_text() == unchanged
        assert "license: apache-2.0" in card.with_name(f"{card.name}.other").read_text()


def test_an_edited_card_outlives_the_run(run, home, door):
    shutil.copytree(run, home / "copy")
    card = home / "copy" / "final" / "README.md"
    card.write_text(card.read_text() + "My own words.\n")
    arguments = [*RUN[:-2], "train.output=copy", "train.steps=4"]
    code, _, err = door("train", home, *arguments)
    assert code == 0 and "README.md.other" in err, err
    assert "My own words." in card.with_name("README.md.other").read_text()
    assert parts(card)[1]["Optimizer steps"] == "4"
    code, _, err = door("train", home, *arguments, "--overwrite")
    assert code == 0, err
    assert "My own words." in card.with_name("README.md.other").read_text()


def test_a_card_that_is_a_link_is_kept(run, home, convert):
    (home / "mine.md").write_text("My own words.\n")
    convert("run", "--to", "linked")
    card = home / "linked" / "README.md"
    card.unlink()
    card.symlink_to(home / "mine.md")
    convert("run", "--to", "linked", "--overwrite")
    assert card.with_name("README.md.other").readlink() == home / "mine.md"
    assert not card.is_symlink() and (home / "mine.md").read_text() == "My own words.\n"


def test_a_folder_in_the_place_of_a_card_is_refused_and_nothing_is_written(run, home, door):
    (home / "taken.safetensors.md").mkdir()
    code, _, err = door("convert", home, "--from", "run", "--to", "flaxformer", "taken.safetensors", "--length", 8)
    assert code == 2 and "taken.safetensors.md is a folder" in err
    assert not (home / "taken.safetensors").exists()

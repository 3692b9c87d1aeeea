"""Names, numbers and answers of the README and its pages, compared with the code that they are of."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from promises.ledger import classified_texts

from mindspore_palm import file_names
from mindspore_palm.config import PaLMConfig, Settings
from mindspore_palm.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
TEXTS = classified_texts()
TEXT = " ".join(" ".join(TEXTS.values()).split())
OTHERS = {  # options of other programs
    "--dist",  # pytest
    "--worker_num",  # msrun
    "--local_worker_num",
    "--join",
    "--logdir",  # tensorboard
    "--model",  # the harness
    "--model_args",
    "--tasks",
    "--include_path",
    "--project",  # trackio
    "--rm",  # docker
    "--user",
    "--nodes",  # Slurm
    "--gpus-per-node",
    "--signal",
}


def number(pattern: str) -> float:
    """The one number that a pattern finds on the pages."""
    (found,) = re.findall(pattern, TEXT)
    return float(found.replace(",", ""))


def test_files_that_the_readme_names_are_there():
    folders = "run|yaml|tests|benchmarks|docs|mindspore_palm"
    named = re.findall(rf"(?<![\w/])((?:{folders})/[\w./]*\w\.(?:py|yaml|txt|png|md|json))\b", TEXT)
    assert len(named) > 60
    assert not [name for name in {*named} if not (ROOT / name).exists()]


def test_settings_that_the_readme_names_are_there():
    from mindspore_palm.train.continuation import CONTENT

    sections = "|".join(Settings.model_fields)
    named = set(re.findall(rf"(?<![\w/.])({sections})\.([a-z_]+)\b(?!/)", TEXT))
    named = {(s, n) for s, n in named if n not in ("py", "yaml", "safetensors", "jsonl", "txt", "md")}
    fields = {(s, name) for s, group in Settings.model_fields.items() for name in group.annotation.model_fields}
    assert len(named & fields) > 25
    accepted = tuple(CONTENT.split("."))  # of --accept alone
    assert named - fields == {("train", "stpes"), accepted}  # the first is a slip that is shown


def test_options_that_the_readme_names_are_there():
    sources = [
        *(ROOT / "mindspore_palm").rglob("*.py"),
        *(ROOT / "run").glob("*.py"),
        *(ROOT / "tests").rglob("table.py"),
        ROOT / "tests" / "promises" / "check.py",
        *(ROOT / "benchmarks").glob("*.py"),
    ]
    code = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", TEXT)) - OTHERS
    assert len(named) > 35
    assert not [option for option in named if f'"{option}"' not in code]


def test_the_columns_of_metrics_csv_are_those_that_are_written():
    from mindspore_palm.train.log.metrics import MetricsRow

    columns = re.findall(r"^\| `(\w+)` \|", TEXTS["docs/reference/metrics.md"], re.MULTILINE)
    assert columns == [field.name for field in dataclasses.fields(MetricsRow)]


def test_numbers_are_those_of_the_code():
    from mindspore_palm import console
    from mindspore_palm.convert import convert
    from mindspore_palm.generate import decoder
    from mindspore_palm.launch import workers as launch
    from mindspore_palm.parallel import host
    from mindspore_palm.train import divergence

    train = Settings().train
    assert number(r"Prompts are read in chunks of (\d+) tokens") == decoder.CHUNK
    assert number(r"`MINDSPORE_PALM_HOST_PATIENCE` seconds, (\d+) unless set") == host.PATIENCE
    assert number(r"a line every (\d+) seconds") == console.EVERY
    assert "the last ten attempts are kept" in TEXT and launch.KEPT_ATTEMPTS == 10
    assert number(r"nothing is finite for (\d+) steps") == divergence.DIVERGED_AFTER
    assert number(r"differs by more than (\S+) of the largest logit") == convert.TOLERANCE
    assert number(r"newest checkpoint at least (\d+) steps before") == train.spike_look_back
    assert number(r"skips (\d+) batches") == train.spike_skip
    assert number(r"then 350, then (\d+), and ends") == train.spike_skip_most
    assert train.spike_tries == 3 and train.spike_steps == 3  # three tries are named, and "three in a row"


def test_finetune_yaml_has_the_settings_that_the_readme_names():
    settings, _ = load_settings(ROOT / "yaml" / "finetune.yaml")
    assert number(r"has PaLM's settings: a constant rate of ([\d.e-]+)") == settings.optimizer.learning_rate
    assert (settings.optimizer.name, settings.optimizer.schedule) == ("adafactor", "constant")
    assert settings.optimizer.warmup_steps == 0
    assert number(r"and dropout ([\d.]+) after the embedding") == settings.finetune.dropout
    assert settings.finetune.lora_rank == 0  # all weights


@pytest.mark.parametrize(
    ("name", "devices", "parameters"),
    [
        ("palm_8b", 8, "8,631,877,632"),
        ("palm_62b", 512, "62,495,129,600"),
        ("palm_540b", 6144, "540,354,281,472"),
    ],
)
def test_palms_own_sizes_are_for_their_devices_and_answer_with_their_memory(name, devices, parameters, door, tmp_path):
    settings, _ = load_settings(ROOT / "yaml" / f"{name}.yaml")
    assert settings.parallel.devices == devices and f"{devices:,}" in TEXT
    assert f"{settings.model.parameter_count():,}" == parameters and parameters in TEXT
    code, _, err = door("train", tmp_path, "--config", ROOT / "yaml" / f"{name}.yaml", "train.device=CPU")
    assert code == 2 and re.fullmatch(r"error: this run needs about [\d,.]+ [GT]B .*\n", err), err
    assert not list(tmp_path.iterdir())


def test_the_table_of_weights_is_that_of_the_network():
    from mindspore_palm.model.weights import placements
    from mindspore_palm.parallel.axes import Layout

    config = PaLMConfig(layers=2, d_model=36, heads=3, head_dim=8, d_ff=144, vocab_size=61, vocab_multiple=8)
    sizes = {"V": config.padded_vocab, "d_model": 36, "H": 3, "K": 8, "F": 144}
    rows = re.findall(r"^\| `([\w.{}]+)` \| \[([^]]+)\] \| [^|]+ \|$", TEXTS["docs/reference/weights.md"], re.MULTILINE)
    assert len(rows) == 5
    documented = {}
    for name, axes in rows:
        spelled = [re.sub(r"\b2K\b", "2*K", axis).replace("2F", "2*F") for axis in axes.split(", ")]
        shape = tuple(int(eval(axis, {}, sizes)) for axis in spelled)
        documented |= {name.replace("{i}", str(i)): shape for i in range(2 if "{i}" in name else 1)}
    assert documented == {place.name: place.shape for place in placements(config, Layout())}


def test_the_answer_about_pathways_is_what_the_command_prints():
    from mindspore_palm.plan import commands

    quoted = " ".join(line[1:].strip() for line in TEXTS["docs/pathways.md"].splitlines() if line.startswith(">"))
    answer = commands.pods(load_settings(ROOT / "yaml" / "palm_540b.yaml")[0], "tpu-v4").rpartition("\n\n")[2]
    assert " ".join(answer.split()) == quoted
    alone, both = (float(x) for x in re.findall(r"(?:alone takes|program each, take) ([\d.]+) s", quoted))
    assert number(r"The model predicts two pods at ([\d.]+) % of the speed of two separate ones") == pytest.approx(
        100 * alone / both, abs=0.05
    )


def test_the_table_of_devices_has_the_dtypes_of_each():
    from mindspore_palm.devices import DEVICES

    rows = re.findall(r"^\| (CPU|GPU|Ascend) \|.*\| ([\w, ]+) \|$", TEXTS["docs/accelerators.md"], re.MULTILINE)
    assert {name: tuple(dtypes.split(", ")) for name, dtypes in rows} == {d.name: d.dtypes for d in DEVICES.values()}


def test_the_blocks_of_the_front_page_are_the_blocks():
    from reference import palm as jax_palm

    from mindspore_palm.model.block import Block

    ours, in_jax = re.findall(r"```py\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    source = textwrap.dedent(inspect.getsource(Block)).partition("def construct(")[2].partition(":\n")[2]
    assert textwrap.dedent(source) == ours
    assert textwrap.dedent(inspect.getsource(jax_palm.block).rpartition('"""\n')[2]) == in_jax


def test_the_extras_are_those_of_the_project():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    said = re.search(r"^Extras: .*?\n\n", (ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), re.M | re.S)[0]
    named = re.findall(r"\.\[(\w+)\]", said)
    assert sorted(named) == sorted(re.findall(r"^(\w+) = \[", extras, re.MULTILINE)) and len(named) > 5


def test_the_page_of_the_format_is_the_format(device, tmp_path):
    """Its tables have the entries of a checkpoint that was written, and the names of its files."""
    from mindspore_palm.checkpoint import format as checkpoint_format
    from mindspore_palm.checkpoint.format import publish, write_shards
    from mindspore_palm.model.weights import placements
    from mindspore_palm.parallel.axes import Layout

    page = TEXTS["docs/reference/checkpoint-format.md"]
    small = PaLMConfig(layers=1, d_model=16, heads=2, head_dim=8, d_ff=32, vocab_size=32)
    stored = {place.name: place for place in placements(small, Layout())}
    temporary = tmp_path / f"{checkpoint_format.folder_name(200)}{file_names.TEMPORARY}"
    write_shards(temporary, 0, {name: np.zeros(place.shape, np.float32) for name, place in stored.items()})
    others = {name: b"{}" for name in (file_names.STATE, file_names.CONFIG, file_names.TOKENIZER)}
    dtypes = dict.fromkeys(stored, "float32")
    folder = publish(temporary, checkpoint_format.shardings(stored), dtypes, 200, others)
    rows = re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+)", page, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]
    assert f"`checkpoints/{folder.name}`" in page and f"`{temporary.name}`" in page
    assert {path.name for path in folder.iterdir()} == {name for name in named if "." in name} - {"rank_1.safetensors"}
    manifest = json.loads((folder / file_names.MANIFEST).read_text(encoding="utf-8"))
    assert list(manifest) == [name for name in named if "." not in name]
    assert f"`{manifest['format']}`" in page
    assert f"`{file_names.GONE}`" in page and f"`{file_names.DAMAGED}`" in page


def test_the_table_of_axes_is_palms():
    from mindspore_palm.parallel.axes import PALM_AXES

    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|$", TEXTS["docs/design/sharding.md"], re.MULTILINE)
    table = {axis: () if mesh == "replicated" else tuple(mesh.split(", ")) for axis, mesh in rows}
    assert table == dict(PALM_AXES) and len(rows) == len(table)

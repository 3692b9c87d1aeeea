"""Every command of the README and the pages runs, in the order of its page, or is listed with the reason it cannot.

``reader.py`` has the rules by which commands are made small. Pages that take long are listed in tests/extended.txt.
"""

from __future__ import annotations

import re
import shutil

import pytest
from cli.pages import LANGUAGES, PAGES, Command, blocks, commands
from cli.reader import RULES, Reader, typed

NOT_RUN = {
    "pip install": "a package index; `-m package` and .ci/run install",
    "python3 -m venv": "it makes an environment; .ci/run does so",
    "python -m pytest": "the tests themselves",
    "mkdocs": "docs/requirements.txt; .ci/run builds the site",
    "python tests/promises/check.py --update": "it writes into the checkout",
    "python tests/parallel/table.py": "many minutes; tests/parallel/ compares the same meshes",
    "python tests/tpu/table.py": "XLA's compiler for TPU; tests/tpu/ compares the same tables",
    "python benchmarks/": "an accelerator, or a quiet machine for many minutes",
    "docker": "Docker",
    "sbatch": "Slurm; tests/cli/test_cluster.py runs two nodes of it where it is installed",
    "export NODES=2": "two hosts; tests/cli/test_cluster.py runs them",
    "NODE_RANK=": "two hosts; tests/cli/test_cluster.py runs them",
    "msrun --worker_num=8": "8 accelerators",
    "msrun --worker_num N": "a form, not a command",
    "python run/train.py --config yaml/palm_tiny.yaml train.device=GPU": "a GPU",
    "python run/generate.py --checkpoint runs/palm_tiny --device GPU": "a GPU",
    "python run/harness.py": "EleutherAI's harness; tests/unit/test_evaluate.py and `-m harness` run it",
    "python run/convert.py --from lucidrains palm.pt": "PyTorch; test_the_conversion_that_needs_pytorch runs it",
    "palm train --config palm_tiny 'train.trackers=": "wandb and trackio; `-m trackers` trains with them",
    "palm prepare --config palm_tiny data.path='hf://": "a network; tests/unit/test_data_hub.py reads a local folder",
    "palm train --config palm_tiny data.path='hf://": "a network; tests/unit/test_data_hub.py reads a local folder",
    "python run/train.py --config yaml/palm_tiny.yaml model.mlp=relu2": "the ablation that the reader adds",
    "python run/train.py --config yaml/palm_tiny.yaml parallel.model=2 parallel.strategy=heads": "the reader adds it",
    "python run/train.py --config yaml/palm_tiny.yaml optimizer.name=sgd": "the optimizer that the reader adds",
}
"""How commands begin that are not run here, and what they need."""
TRAINED = {
    "docs/conversion.md": ["runs/palm_tiny"],
    "docs/evaluation.md": ["runs/palm_tiny"],
    "docs/fine-tuning.md": ["runs/palm_tiny"],
    "docs/generation.md": ["runs/palm_tiny"],
    "docs/loss-spikes.md": ["runs/palm_tiny"],
    "docs/serving.md": ["runs/palm_tiny", "runs/finetuned"],
    "docs/watching.md": ["runs/palm_tiny"],
}
"""Pages whose reader has trained before, and the runs."""
COMMANDS = {page: found for page, text in PAGES.items() if (found := commands(text))}


def reason(command):
    """Why a command is not run; empty if it is."""
    return next((why for start, why in NOT_RUN.items() if command.text.startswith(start)), "")


RUN = {page: found for page in COMMANDS if (found := [one for one in COMMANDS[page] if not reason(one)])}
ANYWHERE = re.compile(r"python (run/(plan|dry_run)\.py|run/study\.py yaml/|tests/)(?!.*(runs/|mine|--charts))")
"""Commands that need nothing of the folder, and whose results no other command needs: run once for all pages."""
done = set()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, prepared):
    """The run of yaml/palm_tiny.yaml."""
    reader = Reader(tmp_path_factory.mktemp("trained"), prepared)
    reader.type(Command("python run/train.py --config yaml/palm_tiny.yaml"))
    return reader.folder / "runs" / "palm_tiny"


@pytest.fixture
def reader(tmp_path, prepared):
    (tmp_path / "checkout").mkdir()
    reader = Reader(tmp_path / "checkout", prepared)
    yield reader
    reader.leave()


@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run(page, reader, request):
    if page in TRAINED:
        run = request.getfixturevalue("trained")
        for name in TRAINED[page]:
            shutil.copytree(run, reader.folder / name)
    for command in RUN[page]:
        if command.text in done:
            continue
        if command.text.startswith("curl") and not shutil.which("curl"):
            continue
        reader.type(command)
        if ANYWHERE.match(command.text):
            done.add(command.text)


@pytest.mark.torch
def test_the_conversion_that_needs_pytorch(reader):
    """That of the README and of its page."""
    import torch
    from unit.foreign import state_of

    state = {name: torch.from_numpy(array) for name, array in state_of("lucidrains").items()}
    torch.save(state, reader.folder / "palm.pt")
    texts = {one.text for found in COMMANDS.values() for one in found if "--from lucidrains palm.pt" in one.text}
    assert len(texts) == 1 and {"README.md", "docs/conversion.md"} <= {
        page for page, found in COMMANDS.items() if any(one.text in texts for one in found)
    }
    reader.type(Command(*texts))
    assert (reader.folder / "runs" / "imported" / "model.safetensors").exists()


def test_what_is_not_run_is_still_on_a_page():
    texts = [one.text for found in COMMANDS.values() for one in found]
    assert [start for start in NOT_RUN if not any(text.startswith(start) for text in texts)] == []
    assert [why for why in NOT_RUN.values() if not why] == []


def test_every_rule_is_needed():
    for rule in RULES:
        assert any(re.search(rule[0], one.text) for found in RUN.values() for one in found), rule
    assert [page for page in TRAINED if page not in RUN] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_fence_says_what_is_in_it(page):
    """So that no command is taken for the output of another."""
    assert {language for language, _ in blocks(PAGES[page])} <= LANGUAGES.keys()


def test_commands_are_found_wherever_a_reader_would_see_them():
    text = (
        "# T\nSee `palm train`, `palm plan --pods` and `x=1`.\n\n```bash\npalm a \\\n    b=1  # why\n# no\n\n"
        'cd x && ls\n```\n```console\n$ palm c "#"\nerror: d\ne\n$ f\n```\n```text\npalm g\n```\n'
        "| `python run/h.py i` | `cat\nj` |\n```py\npip k\n```\n"
    )
    assert commands(text) == [
        Command("palm plan --pods", inline=True),
        Command("palm a b=1", "why"),
        Command("cd x && ls"),
        Command('palm c "#"', answer="error: d\ne"),
        Command("f"),
        Command("python run/h.py i", inline=True),
        Command("cat j", inline=True),
    ]
    assert blocks(text)[-1] == ("py", "pip k\n") and typed(Command("palm serve a"), 7) == "palm serve a --port 7"

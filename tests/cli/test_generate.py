"""The command that generates: its output, and each bad input in one sentence."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli.signals import interrupted_at_start
from safetensors.numpy import load_file, save_file

from mindspore_palm import PaLM, Tokenizer
from mindspore_palm.checkpoint.model_folder import save_model, weights_of
from mindspore_palm.config import Settings
from mindspore_palm.errors import run_command
from mindspore_palm.launch.interrupts import Interrupts

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "run" / "generate.py"
MODEL = {"layers": 1, "d_model": 16, "heads": 2, "head_dim": 8, "d_ff": 32, "vocab_size": 320}


@pytest.fixture(scope="module")
def run_folder(device, tmp_path_factory):
    """The folder of a finished run; trained on 32 tokens."""
    folder = tmp_path_factory.mktemp("run")
    words = (f"import os{i}\ndef f{i}(a, b):\n    return a + {i} * b\n" for i in range(400))
    tokenizer = Tokenizer.train(words, 320, folder / "tokenizer.model")
    (folder / "tokenizer.model").unlink()
    settings = Settings.model_validate({"model": MODEL, "data": {"seq_len": 32}})
    save_model(folder / "final", weights_of(PaLM(settings.model)), tokenizer.serialized, settings, step=1)
    return folder


@pytest.fixture
def command(run_folder, monkeypatch, capsys):
    """Runs the command in this process: exit code, standard output, standard error."""
    spec = importlib.util.spec_from_file_location("run_generate", COMMAND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    monkeypatch.setattr(Interrupts, "listen", lambda _: None)  # Ctrl-C stays pytest's

    def run(*arguments, folder=run_folder, given=b""):
        standard_input = SimpleNamespace(buffer=io.BytesIO(given))
        monkeypatch.setattr(sys, "stdin", standard_input)
        monkeypatch.setattr(sys, "argv", [str(COMMAND), "--checkpoint", str(folder), *arguments])
        code = run_command(module.main)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def shell(run_folder, *arguments, **options):
    line = [sys.executable, COMMAND, "--checkpoint", run_folder, *arguments]
    return subprocess.run(line, capture_output=True, timeout=120, cwd=ROOT, **options)


def test_a_prompt_is_continued_as_in_python(run_folder, command):
    """Also beyond the context of 32 tokens."""
    from mindspore_palm import load
    from mindspore_palm.generate import Generator, Sampling

    result = command("import os1", "--max-tokens", "60", "--temperature", "0", "--log-probs")
    generator = Generator(load(run_folder), Tokenizer(run_folder / "final" / "tokenizer.model"), context=32)
    expected = generator(["import os1"], Sampling(max_tokens=60))[0]
    assert result.code == 0, result.err
    assert result.out.startswith(f"import os1{expected.text}\n\nlog-probability, token\n")
    listed = re.findall(r"^ *(-\d+\.\d{4})  '", result.out, re.MULTILINE)
    assert [float(one) for one in listed] == pytest.approx(expected.log_probs, abs=1e-4)
    assert re.search(r"\[60 tokens in .* ended by length\]", result.err)


def test_several_prompts_and_one_from_standard_input(command):
    result = command("import os1", "def f", "--prompt-file", "-", "--max-tokens", "3", given="é(".encode())
    assert result.code == 0, result.err
    assert re.search(r"--- 1\nimport os1.*--- 2\ndef f.*--- 3\né\(", result.out, re.DOTALL)


def test_interactive_continues_after_the_text_so_far(command, monkeypatch):
    """A line, an empty one, one that is too long, another line; then the end of input."""
    lines = iter(["import os", "", "x1" * 40, "def f"])

    def next_line(_prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", next_line)
    result = command("--interactive", "--max-tokens", "6")
    assert result.code == 0, result.err
    assert result.out.startswith("import os") and "\ndef f" in result.out
    assert result.err.count("6 tokens in") == 3
    assert re.search(r"error: the line has \d+ tokens; at most 15 fit", result.err)


def test_bytes_that_come_together_make_a_character(run_folder):
    """In a process, whose output is read as bytes: it is UTF-8 whatever the locale."""
    done = shell(run_folder, "é漢", "--max-tokens", "40", "--temperature", "2", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith("é漢")


@pytest.mark.slow
def test_ctrl_c_prints_what_was_generated_so_far(run_folder):
    """It ends the command with exit code 130; MindSpore alone would end it by SIGTERM (MS-68)."""
    line = [sys.executable, COMMAND, "--checkpoint", run_folder, "import os1", "--max-tokens", "1000000"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        streamed = process.stdout.read(100)  # while it streams
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    text, err = (streamed + out).decode(), err.decode()
    assert process.returncode == 130, err
    assert text.startswith("import os1") and text.endswith("\n")
    assert re.search(r"\[\d+ tokens in .* ended by Ctrl-C\]\nstopped\n$", err) and "Traceback" not in err


def test_ctrl_c_while_the_model_is_loaded(run_folder):
    line = [sys.executable, COMMAND, "--checkpoint", run_folder, "import os1"]
    assert interrupted_at_start(line, cwd=ROOT) == (130, b"", b"\nstopped\n")


@pytest.fixture
def interrupting(monkeypatch):
    """Has Ctrl-C come in the fifth step, so many times; a list of the times that it ended the process at once."""
    from mindspore_palm.generate import Generator

    def interrupt(times):
        effects, ended, steps = [], [], Generator.run

        def run(self, sequences):
            for number, _ in enumerate(steps(self, sequences), 1):
                for _ in range(times if number == 5 else 0):
                    effects[-1]()
                yield

        @contextmanager
        def have(self, effect):
            effects.append(effect)
            yield

        monkeypatch.setattr(Interrupts, "have", have)
        monkeypatch.setattr(Generator, "run", run)
        monkeypatch.setattr("mindspore_palm.generate.command.end_process", lambda: ended.append(True))
        return ended

    return interrupt


@pytest.mark.parametrize("prompts", [["import os1"], ["import os1", "def f"]])
def test_ctrl_c_ends_after_the_token_at_hand(prompts, run_folder, command, interrupting):
    """Of several prompts, each text so far is printed."""
    from mindspore_palm import load
    from mindspore_palm.generate import Generator, Sampling

    tokenizer = Tokenizer(run_folder / "final" / "tokenizer.model")
    expected = Generator(load(run_folder), tokenizer, 32, len(prompts))(prompts, Sampling(max_tokens=5))
    ended = interrupting(1)
    result = command(*prompts, "--temperature", "0")
    texts = [prompt + one.text for prompt, one in zip(prompts, expected, strict=True)]
    assert (result.code, ended) == (130, []) and result.err.endswith("\nstopped\n"), result.err
    assert result.out == "".join(
        f"--- {number}\n{text}\n" if len(prompts) > 1 else f"{text}\n" for number, text in enumerate(texts, 1)
    )


def test_a_second_ctrl_c_ends_at_once(command, interrupting):
    ended = interrupting(2)
    assert command("import os1").code == 130 and ended == [True]


def test_two_devices_print_what_one_prints(run_folder):
    """With workers that the command starts; a sampled text, several windows long."""
    options = ["import os1", "--max-tokens", "70", "--seed", "5"]
    one, two = (shell(run_folder, *options, *more) for more in ([], ["--devices", "2"]))
    assert one.returncode == two.returncode == 0, two.stderr
    assert two.stdout.decode().splitlines()[:3] == one.stdout.decode().splitlines()[:3]


def one_sentence(result):
    (line,) = result.err.strip().splitlines()
    assert result.code == 2 and line.startswith("error: ") and not result.out
    return line


def test_bad_prompts(command, tmp_path):
    assert "the prompt is empty" in one_sentence(command(""))
    assert "there is no prompt" in one_sentence(command())
    assert "the prompt is not UTF-8 text: byte 0xff at 3" in one_sentence(command("abc\udcff"))
    (tmp_path / "latin").write_bytes("abc é".encode("latin-1"))
    assert "is not UTF-8 text: byte 0xe9 at 4" in one_sentence(command("--prompt-file", str(tmp_path / "latin")))
    (tmp_path / "large").write_text("x = 1\n" * 200_000)
    assert "has 1,200,000 characters, and the context" in one_sentence(
        command("--prompt-file", str(tmp_path / "large"))
    )
    assert "tokens, and the context holds 32 tokens" in one_sentence(command("x1" * 60))
    assert "No such file" in one_sentence(command("--prompt-file", str(tmp_path / "absent")))


def test_bad_checkpoints(command, run_folder, tmp_path):
    assert "there is no folder" in one_sentence(command("x", folder=tmp_path / "absent"))
    assert "neither model.safetensors nor" in one_sentence(command("x", folder=tmp_path))
    final = run_folder / "final"
    for name in ("tokenizer.model", "config.yaml", "model.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        for other in final.iterdir():
            if other.name != name:
                (folder / other.name).write_bytes(other.read_bytes())
        assert name in one_sentence(command("x", folder=folder))
        (folder / name).write_bytes((final / name).read_bytes()[:40])
        assert name in one_sentence(command("x", folder=folder))


def test_prompts_from_several_files(command, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"{name}(")
    files = [word for name in ("one", "two") for word in ("--prompt-file", str(tmp_path / name))]
    result = command(*files, "--max-tokens", "2")
    assert result.code == 0, result.err
    assert re.search(r"--- 1\none\(.*--- 2\ntwo\(", result.out, re.DOTALL)
    message = one_sentence(command("--prompt-file", "-", "--prompt-file", "-"))
    assert "--prompt-file - is given twice, and standard input is read once" in message


def test_a_prompt_that_ends_in_a_space_is_shown_as_it_is(run_folder, command):
    """And is continued by the same text as in Python."""
    from mindspore_palm import load
    from mindspore_palm.generate import Generator, Sampling

    generator = Generator(load(run_folder), Tokenizer(run_folder / "final" / "tokenizer.model"), context=32)
    for prompt in ("    return ", "import os1\n"):
        result = command(prompt, "--max-tokens", "9", "--temperature", "0")
        (expected,) = generator([prompt], Sampling(max_tokens=9))
        assert result.out == f"{prompt}{expected.text}\n", result.err


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_model_that_is_not_finite_is_named(run_folder, command, tmp_path, value):
    weights = load_file(run_folder / "final" / "model.safetensors")
    shutil.copytree(run_folder, tmp_path / "lost")
    weights["blocks.0.o_wo"][:] = float(value)
    save_file(weights, tmp_path / "lost" / "final" / "model.safetensors")
    result = command("x", "--max-tokens", "3", folder=tmp_path / "lost")
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"{tmp_path / 'lost' / 'final'}: the logits for token 1 after the prompt are not finite" in result.err


def test_bad_settings(command):
    assert "--context 33: the model was trained on 32 tokens" in one_sentence(command("x", "--context", "33"))
    assert "--top-p 2.0: must be above 0" in one_sentence(command("x", "--top-p", "2"))
    assert "--devices 0: set it to 1 or more" in one_sentence(command("x", "--devices", "0"))
    assert "--devices 4: the model's 2 heads cannot be sharded over 4; set it to 2" in one_sentence(
        command("x", "--devices", "4")
    )
    assert "--interactive is for one device" in one_sentence(command("--interactive", "--devices", "2"))

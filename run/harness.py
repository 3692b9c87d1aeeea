"""EleutherAI's harness: python run/harness.py --model mindspore_palm --model_args checkpoint=FOLDER --tasks ..."""

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("harness", __name__)

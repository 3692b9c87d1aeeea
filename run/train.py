"""Trains or fine-tunes a PaLM: python run/train.py --config yaml/palm_tiny.yaml [section.key=value ...]"""

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("train", __name__)

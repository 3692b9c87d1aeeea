"""Prepares a corpus: python run/prepare_data.py --config yaml/palm_tiny.yaml data.path=my_texts"""

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("prepare", __name__)

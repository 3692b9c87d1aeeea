"""Runs a study: python run/study.py yaml/studies/article.yaml [--quick] [--output FOLDER]"""

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("study", __name__)

"""Scores a trained model: python run/evaluate.py --checkpoint runs/palm_tiny --data my.txt"""

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("evaluate", __name__)

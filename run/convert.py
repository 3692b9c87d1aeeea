"""Converts weights from and to other PaLMs: python run/convert.py --from lucidrains palm.pt --to runs/imported"""

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("convert", __name__)

"""Serves a trained PaLM over HTTP: python run/serve.py runs/palm_tiny"""

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("serve", __name__)

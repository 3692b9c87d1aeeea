"""A conversation with a trained PaLM in the terminal: python run/chat.py runs/palm_tiny"""

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("chat", __name__)

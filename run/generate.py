"""A trained PaLM continues a prompt: python run/generate.py --checkpoint runs/palm_tiny "def main(" """

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("generate", __name__)

"""Partitions a training step for any number of devices: python run/dry_run.py --config yaml/palm_540b.yaml [...]"""

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("dry-run", __name__)

"""Plans a run before it starts: python run/plan.py --config yaml/palm_540b.yaml [--machine tpu-v4] [...]"""

from pathlib import Path
from runpy import run_path

main = run_path(str(Path(__file__).with_name("checkout.py")))["alias"]("plan", __name__)

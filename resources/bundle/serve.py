"""Serve the models of this bundle on a page and to other programs: python3 serve.py --help"""

import sys
from pathlib import Path

from axbake.runtime.serve.command import run

if __name__ == "__main__":
    sys.exit(run(Path(__file__).resolve().parent))

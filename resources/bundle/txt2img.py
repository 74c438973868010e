"""Draw pictures of a prompt with the models of this bundle: python3 txt2img.py --help"""

import sys
from pathlib import Path

from axbake.runtime.command import run

if __name__ == "__main__":
    sys.exit(run("txt2img", Path(__file__).resolve().parent))

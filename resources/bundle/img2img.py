"""Draw over a picture with the models of this bundle: python3 img2img.py --help"""

import sys
from pathlib import Path

from axbake.runtime.command import run

if __name__ == "__main__":
    sys.exit(run("img2img", Path(__file__).resolve().parent))

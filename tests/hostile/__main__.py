"""The whole attack: strangers' files, tampered build caches, lying sites. Prints their tables; ends with 1 if anything did harm.

    python -m tests.hostile [--files 3200] [--caches 105] [--sites 120] [--seed 1]

It takes some minutes on two cores. The unit tests do the same with a few of each, and show that harm is seen.
"""

import argparse
import subprocess
import sys

from tests.hostile.files import ROOT


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=3200)
    parser.add_argument("--caches", type=int, default=105)
    parser.add_argument("--sites", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    parts = {
        "files": ["--inputs", str(given.files), "--seed", str(given.seed)],
        "cache": [str(given.caches), str(1000 * (given.seed - 1))],
        "sites": [str(given.sites), "--seed", str(given.seed)],
    }
    harm = 0
    for part, arguments in parts.items():
        print(f"\n{part}", flush=True)
        harm |= subprocess.run([sys.executable, "-m", f"tests.hostile.{part}", *arguments], cwd=ROOT).returncode
    return int(harm != 0)


if __name__ == "__main__":
    sys.exit(main())

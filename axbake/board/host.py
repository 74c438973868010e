"""What a bundle's program does on this host. It needs no board, and is never taken for one."""

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from axbake.board.benchmark import drawing_summary
from axbake.board.bundle import read_bundle
from axbake.board.errors import FailedOnHost
from axbake.board.measurement import steps_of

logger = logging.getLogger(__name__)


def benchmark_host(*, manifest: Path, pictures: int, benchmark: Path, image: Path) -> None:
    """Draw with the bundle of *manifest* on this host, by the program that runs on the board.

    Args:
        pictures: of each number of steps.
        benchmark: JSON to write, of the form of `benchmark_board`, without what only a card has.
        image: PNG to write: the row's own picture.

    Raises:
        DamagedBundle: the bundle's files are not those that it lists.
        FailedOnHost: the program's own words; models of Pulsar2 run on boards alone.
    """
    bundle = read_bundle(manifest)
    seed = bundle.manifest["settings"]["seed"]
    drawings = {}
    for steps in steps_of(bundle):
        output, timings = image.with_name(f"{steps}.png"), image.with_name(f"{steps}.json")
        command = [sys.executable, str(bundle.directory.resolve() / "txt2img.py"), "--runtime", "onnxruntime"]
        command += ["--steps", str(steps), "--count", str(pictures), "--output", str(output), "--timings", str(timings)]
        logger.info("drawing on this host, steps: %d", steps)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
        )
        logger.debug("txt2img.py: %s", done.stdout)
        if done.returncode:
            said = " / ".join(done.stdout.strip().splitlines()[-2:])
            raise FailedOnHost(f"{bundle.model}: txt2img.py failed on this host (status {done.returncode}): {said}")
        drawings[steps] = json.loads(timings.read_text(encoding="utf-8"))
        if not image.exists():
            output.with_name(f"{steps}-{seed}.png" if pictures > 1 else output.name).rename(image)
    host = next(iter(drawings.values()))["host"]
    content = {
        "ran_on": "host",
        "emulated": bundle.manifest["emulated"],
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": bundle.model,
        "manifest_sha256": bundle.files["manifest.json"],
        "settings": bundle.manifest["settings"],
        "board": {"name": f"this host, {host['machine']}, {host['cores']} cores"},
        "host": host,
        "models": {
            name: {"file": file, "sha256": bundle.files[file], "bytes": bundle.bytes_of(file)}
            for name, file in bundle.models.items()
        },
        "drawings": {str(steps): drawing_summary(found, bundle, {}) for steps, found in drawings.items()},
    }
    benchmark.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

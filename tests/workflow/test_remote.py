"""Two checkouts without a common disk: what one has built and pushed, the other does not build again."""

import os
import subprocess
import sys

import yaml

from axbake.jobs.record import read_records
from axbake.project import SNAKEFILE
from tests.workflow.project import REPORT


def test_the_second_checkout_bakes_to_the_report_and_builds_nothing(baked, fresh, tmp_path):
    key, remote = tmp_path / "key", tmp_path / "remote"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers = fresh.directory / "config" / "signers"
    signers.write_text(f"friend {key.with_suffix('.pub').read_text()}")
    command = [sys.executable, "-m", "axbake", "cache", "push", REPORT, "--remote", remote, "--yes"]
    environment = baked.environment | {"AXBAKE_SIGNING_KEY": str(key), "PYTHONPATH": str(baked.checkout)}
    (tmp_path / "theirs").mkdir()
    theirs = baked.copy(tmp_path / "theirs")
    (theirs.directory / "Snakefile").write_text(SNAKEFILE)
    environment |= {"AXBAKE_CACHE": str(theirs.cache)}
    pushed = subprocess.run(
        command, cwd=theirs.directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout.decode()
    assert "Pushed " in pushed and "a rocket, in the night" in pushed, pushed
    config = fresh.directory / "config" / "config.yaml"
    settings = {"cache_remote": str(remote), "cache_signers": "config/signers"}
    config.write_text(config.read_text() + yaml.safe_dump(settings))

    plan = fresh.planner(REPORT)
    said = fresh.bake(REPORT)

    assert "(remote)" in plan and "0 to build, 0 unknown" in plan
    assert f"remote build cache: {remote}, " in said
    records = [record for log in fresh.directory.joinpath("logs").rglob("*.log") for record in read_records(log)]
    steps = fresh.steps()
    built = [
        record.step for record in records if not record.stored and record.step in {one.split("/")[0] for one in steps}
    ]
    assert len(steps) > 20 and built == []
    for name in ("unet.axmodel", "simulation/image.png", "report.json"):
        ours, other = (one.directory / "results" / "tiny" / name for one in (fresh, theirs))
        assert ours.exists() and (name == "report.json" or ours.read_bytes() == other.read_bytes())
    assert os.fspath(key) not in said + "".join(path.read_text() for path in fresh.directory.glob("logs/**/*.log"))

"""Two checkouts without a common disk: what one has built and pushed, the other does not build again."""

import os
import shutil
import subprocess
import sys

import yaml

from axbake.jobs.record import read_records
from axbake.project import SNAKEFILE
from tests.workflow.project import REPORT

BUNDLE = "results/tiny/bundle/axbake/manifest.json"


def test_the_second_checkout_bakes_to_the_report_and_builds_nothing(baked, fresh, tmp_path):
    """What was built goes with the bundle, as it would through a repository of Hugging Face."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers = fresh.directory / "config" / "signers"
    signers.write_text(f"friend {key.with_suffix('.pub').read_text()}")
    environment = baked.environment | {"AXBAKE_SIGNING_KEY": str(key), "PYTHONPATH": str(baked.checkout)}
    (tmp_path / "theirs").mkdir()
    theirs = baked.copy(tmp_path / "theirs")
    (theirs.directory / "Snakefile").write_text(SNAKEFILE)
    environment |= {"AXBAKE_CACHE": str(theirs.cache)}
    theirs.bake(BUNDLE)
    bundle = theirs.directory.joinpath(BUNDLE).parent
    command = [sys.executable, "-m", "axbake", "cache", "push", "--remote", bundle / "builds", "--yes", REPORT, BUNDLE]
    pushed = subprocess.run(
        command, cwd=theirs.directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout.decode()
    assert "Pushed " in pushed and "a rocket, in the night" in pushed, pushed
    remote = shutil.copytree(bundle, tmp_path / "downloaded") / "builds"
    config = fresh.directory / "config" / "config.yaml"
    settings = {"cache_remote": str(remote), "cache_signers": "config/signers"}
    config.write_text(config.read_text() + yaml.safe_dump(settings))

    plan = fresh.planner(REPORT)
    said = fresh.bake(REPORT, BUNDLE)

    assert "(remote)" in plan and "0 to build, 0 unknown" in plan
    assert f"remote build cache: {remote}, " in said
    records = [record for log in fresh.directory.joinpath("logs").rglob("*.log") for record in read_records(log)]
    steps = fresh.steps()
    built = [
        record.step for record in records if not record.stored and record.step in {one.split("/")[0] for one in steps}
    ]
    assert len(steps) > 20 and built == []
    for name in ("unet.axmodel", "simulation/image.png", "bundle/axbake/manifest.json"):
        ours, other = (one.directory / "results" / "tiny" / name for one in (fresh, theirs))
        assert ours.read_bytes() == other.read_bytes()
    assert fresh.directory.joinpath(REPORT).with_name("report.json").exists()
    assert os.fspath(key) not in said + "".join(path.read_text() for path in fresh.directory.glob("logs/**/*.log"))

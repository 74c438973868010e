"""How often Snakemake reads a file to know its content."""

import subprocess
import sys

SNAKEFILE = """
import hashlib
from pathlib import Path

from snakemake.io import _IOFile

from axbake.jobs.checksums import hash_once

hash_once(_IOFile)
digest = hashlib.file_digest


def counted(file, algorithm):
    with Path("hashed").open("a", encoding="utf-8") as log:
        print(getattr(file, "name", ""), file=log)
    return digest(file, algorithm)


hashlib.file_digest = counted


rule all:
    input:
        "d",
        "e",


rule three:
    input:
        "big",
    output:
        "a",
        "b",
        "c",
    shell:
        "cp big a; cp big b; cp big c"


rule changes:
    input:
        "a",
        "big",
    output:
        "d",
        "e",
    shell:
        "cat a big > d; cp d e"
"""


def test_a_file_is_hashed_once_in_a_run_however_many_outputs_its_jobs_have_and_again_when_it_changed(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    (tmp_path / "big").write_text("first", encoding="utf-8")

    def run() -> list[str]:
        (tmp_path / "hashed").unlink(missing_ok=True)
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "--max-checksum-file-size", "1GB"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        hashed = tmp_path / "hashed"
        return sorted(hashed.read_text(encoding="utf-8").split()) if hashed.exists() else []

    assert run() == ["a", "big"]

    (tmp_path / "big").write_text("other", encoding="utf-8")
    assert "big" in run() and (tmp_path / "d").read_text(encoding="utf-8") == "otherother"

    (tmp_path / "big").touch()
    assert run() == ["big"]  # looks newer, has the same content: nothing is made

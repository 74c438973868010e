"""A server that does not start on a board, or is not the bundle's, ends in words. A real one: tests/workflow/test_board.py."""

import base64
import io
import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from axbake.board.bundle import read_bundle
from axbake.board.connection import Board
from axbake.board.errors import EmulatedModel, FailedOnBoard, MissingProgram, UnreadableOutput
from axbake.board.serving import read_answer, script, serve_board
from tests.board.bundle import EMULATOR, write_bundle
from tests.services.sshd import free_port

DIES = "import sys; sys.exit('BundleError: card 0: the driver finds 0 cards')"
# Something else that listens there: it answers every request alike.
OTHER = """
import http.server, sys
class Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")
    do_POST = do_GET
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Other).serve_forever()
"""


@pytest.fixture
def serve(board, tmp_path):
    """A function that serves a bundle whose serve.py is the given one; it is ended with the test."""

    def run(program, **how):
        manifest = write_bundle(tmp_path / "bundle", **how.pop("bundle", {}))
        (manifest.parent / "serve.py").write_text(program)
        content = json.loads(manifest.read_text())
        content["files"]["serve.py"] = {
            "sha256": subprocess.check_output(["sha256sum", manifest.parent / "serve.py"], text=True)[:64],
            "bytes": len(program),
        }
        manifest.write_text(json.dumps(content))
        shutil.copytree(manifest.parent, board.directory / "tiny")
        made = {"served": tmp_path / "served.json", "image": tmp_path / "served.png"}
        how = {"python": sys.executable, "serve_port": free_port(), **how}
        try:
            serve_board(manifest=manifest, **board.settings, **made, **how)
        finally:
            assert not any(path.exists() for path in made.values())

    yield run
    for number in board.directory.glob(".serve-*.pid"):
        subprocess.run(["kill", number.read_text().strip()], capture_output=True)


def test_a_server_that_ends_is_reported_with_its_last_words(serve):
    with pytest.raises(FailedOnBoard, match=r"the server does not draw: it ended; its log: .*the driver finds 0 cards"):
        serve(DIES)


def test_another_program_on_the_port_is_not_taken_for_the_server(serve):
    with pytest.raises(UnreadableOutput, match=r"what answers is not serve\.py"):
        serve(OTHER)


def test_packages_that_the_board_lacks_are_named(serve, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -s "$@"\n')
    python.chmod(0o755)

    with pytest.raises(MissingProgram, match=r"lacks packages of the server: .*No module named.*requirements\.txt"):
        serve(DIES, python=str(python))


def test_emulated_models_are_not_served_on_a_board(serve):
    with pytest.raises(EmulatedModel):
        serve(DIES, bundle={"head": EMULATOR, "emulated": True})


def answer(**changed):
    file = io.BytesIO()
    Image.new("RGB", changed.pop("size", (48, 64))).save(file, format="PNG")
    timings = {"text_embedding_seconds": 0.1, "step_seconds": [0.5], "decode_seconds": 0.2, "total_seconds": 0.8}
    said = {"emulated": False, "timings": [{**timings, "runs": {}}], **changed}
    return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}], "axbake": said}


def test_what_a_server_answers_is_checked():
    far = Board("far", "", 0, "bundles", "card", 0)
    read = lambda content: read_answer(far, content, {"height": 64, "width": 48})

    picture, timings = read(answer())
    assert picture.startswith(b"\x89PNG") and timings["step_seconds"] == [0.5] and "runs" not in timings
    with pytest.raises(FailedOnBoard, match="has emulated models"):
        read(answer(emulated=True))
    for wrong in ({}, [], {"data": []}, answer(size=(4096, 4096)), answer(timings=[]), answer(timings=[{}])):
        with pytest.raises(UnreadableOutput, match="far: the server's answer: "):
            read(wrong)


def test_with_systemd_the_server_is_a_unit_of_the_user(tmp_path):
    """What `start` does there, by a systemctl that notes what it is asked."""
    manifest = write_bundle(tmp_path / "bundle")
    (manifest.parent / "serve.py").write_text("import sys; print('[Service]', sys.argv[1:])")
    programs, asked = tmp_path / "programs", tmp_path / "asked"
    programs.mkdir()
    (programs / "systemctl").write_text(f'#!/bin/sh\necho "$*" >>{asked}\n')
    (programs / "systemctl").chmod(0o755)
    far = Board("far", "", 0, str(tmp_path), "card", 0)
    bundle = read_bundle(manifest)
    commands = script(far, bundle, python=sys.executable, port=7860)
    commands = commands.replace(f"{tmp_path}/tiny", str(manifest.parent)).partition("section packages")[0] + (
        'section() { shift; "$@"; }\n'
        + commands[commands.index("by_systemd()") : commands.index("section start")]
        + "start\n"
    )
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)}

    done = subprocess.run(["sh", "-c", commands], env=environment, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, "systemd\n"), done.stderr
    unit = tmp_path / ".config/systemd/user/axbake.service"
    assert unit.read_text() == "[Service] ['--unit', '--port', '7860', '--runtime', 'axcl', '--devices', '0']\n"
    assert asked.read_text().splitlines() == [
        *("--user show-environment", "--user daemon-reload", "--user enable axbake.service"),
        "--user restart axbake.service",
    ]

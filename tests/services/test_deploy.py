"""Bundles that come to a board whole, or not at all, over a real sshd."""

import getpass
import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from axbake.board.deploy import SPARE, deploy_bundle
from axbake.board.errors import (
    ConnectionLost,
    DamagedBundle,
    EmulatedModel,
    FailedOnBoard,
    LoginRefused,
    MissingDriver,
    MissingProgram,
    NoSpace,
    NoSuchCard,
    NotEnoughCmm,
    Unreachable,
    UnreadableOutput,
    WrongHostKey,
)
from axbake.digest import file_sha256
from tests.board.bundle import EMULATOR, write_bundle
from tests.board.played import CARD, recorded, recorded_smi
from tests.services.sshd import cut_after


@pytest.fixture
def manifest(tmp_path):
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def deploy(board, manifest, tmp_path):
    """A function that copies the bundle; gives what the deployment says."""

    def run(manifest=manifest, **other):
        deployment = tmp_path / "deployment.json"
        deploy_bundle(manifest=manifest, deployment=deployment, **board.settings | other)
        return json.loads(deployment.read_text())

    return run


def assert_there(board, manifest, model="tiny"):
    """The bundle is on the board, file by file, and nothing of its transfer is left."""
    there, here = board.directory / model, manifest.parent
    listed = [*json.loads(manifest.read_text())["files"], "manifest.json"]
    assert [name for name in listed if (there / name).read_bytes() != (here / name).read_bytes()] == []
    assert not (board.directory / ".incoming" / model).exists()


def assert_no_bundle(board):
    """Nothing on the board would be taken for a bundle."""
    assert not [name for name in board.files() if name.endswith("manifest.json") and ".incoming" not in name]


def test_a_bundle_is_copied_and_the_deployment_says_what_lies_where(board, manifest, deploy):
    said = deploy()

    assert_there(board, manifest)
    assert said["directory"] == f"{board.directory}/tiny"
    assert said["files"]["unet.axmodel"] == file_sha256(manifest.parent / "unet.axmodel")
    assert said["bytes"] == sum(path.stat().st_size for path in manifest.parent.rglob("*") if path.is_file())


def test_only_what_changed_is_copied_again_and_what_is_not_the_bundles_stays(board, manifest, deploy, tmp_path, caplog):
    deploy()
    inode = (board.directory / "tiny" / "unet.axmodel").stat().st_ino
    (board.directory / "tiny" / "mine.png").write_bytes(b"a picture of the user's")
    caplog.set_level(logging.INFO)

    deploy()
    assert "already has the bundle" in caplog.text

    other = write_bundle(tmp_path / "other")
    (other.parent / "vae_decoder.axmodel").write_bytes(b"\x08\x0a\x12\x07Pulsar2" + b"changed")
    told = json.loads(other.read_text())
    told["files"]["vae_decoder.axmodel"]["sha256"] = file_sha256(other.parent / "vae_decoder.axmodel")
    del told["files"]["schedules/euler-10.npz"]
    (other.parent / "schedules" / "euler-10.npz").unlink()
    other.write_text(json.dumps(told))
    deploy(other)

    assert_there(board, other)
    assert (board.directory / "tiny" / "unet.axmodel").stat().st_ino == inode  # linked, not copied
    assert (board.directory / "tiny" / "mine.png").read_bytes() == b"a picture of the user's"
    assert not (
        board.directory / "tiny" / "schedules" / "euler-10.npz"
    ).exists()  # an old bundle's, and this one has none


@pytest.mark.parametrize("limit", [30_000, 500_000])  # bytes, of about 650,000; few are the first file's
def test_a_connection_that_breaks_leaves_the_old_bundle_and_the_next_run_goes_on(
    board, manifest, deploy, tmp_path, limit
):
    old = write_bundle(tmp_path / "old", content=2)
    deploy(old)
    board.sshd.config.write_text(board.sshd.config.read_text() + cut_after(limit, board.sshd.port))

    with pytest.raises(ConnectionLost, match=r"the connection ended.*the next run continues with them"):
        deploy()

    there = board.directory / "tiny"
    assert (there / "manifest.json").read_bytes() == old.read_bytes()
    assert (there / "unet.axmodel").read_bytes() == (old.parent / "unet.axmodel").read_bytes()
    kept = sum(path.stat().st_size for path in (board.directory / ".incoming").rglob("*") if path.is_file())
    assert kept <= limit  # how much less depends on what was on its way, and so on the machine

    # The rest fits through a line that would break before all of it came over: what is there is not sent again.
    board.sshd.reset()
    board.sshd.config.write_text(board.sshd.config.read_text() + cut_after(750_000 - kept, board.sshd.port))
    deploy()
    assert_there(board, manifest)


def test_a_first_transfer_that_breaks_leaves_nothing_that_looks_whole(board, deploy):
    board.sshd.config.write_text(board.sshd.config.read_text() + cut_after(300_000, board.sshd.port))

    with pytest.raises(ConnectionLost):
        deploy()

    assert_no_bundle(board)


def test_another_host_key_is_refused_and_nothing_is_sent(board, deploy):
    board.sshd.show_host_key("other_host_key")

    with pytest.raises(
        WrongHostKey, match=r"played-board: ssh does not accept its host key: .*HOST IDENTIFICATION HAS CHANGED"
    ):
        deploy()

    assert not board.directory.exists()


def test_an_unknown_host_key_is_refused_without_a_question(board, deploy):
    board.sshd.known_hosts.write_text("")
    board.sshd.config.write_text(
        board.sshd.config.read_text() + "    StrictHostKeyChecking no\n"
    )  # whatever the user has set

    with pytest.raises(WrongHostKey, match=r"log in once by hand \(`ssh played-board`\)"):
        deploy()

    assert board.sshd.known_hosts.read_text() == ""


def test_a_user_whom_the_board_does_not_know_is_refused(board, deploy):
    with pytest.raises(LoginRefused, match=r"nobody@played-board: .*Permission denied.*`ssh -l nobody played-board`"):
        deploy(user="nobody")


def test_the_user_and_port_of_config_go_before_those_of_ssh(board, manifest, deploy):
    board.sshd.config.write_text(board.sshd.config.read_text().replace(f"Port {board.sshd.port}", "Port 1"))

    with pytest.raises(Unreachable, match=r"no connection: .*port 1.*refused"):
        deploy()
    deploy(user=getpass.getuser(), port=board.sshd.port)

    assert_there(board, manifest)


def test_a_host_without_a_name_is_unreachable(deploy):
    with pytest.raises(Unreachable, match=r"nowhere\.invalid: no connection: .*resolve"):
        deploy(host="nowhere.invalid")


@pytest.fixture
def small_disk(board):
    """The directory of bundles on a file system of 400 KB."""
    if os.getuid():
        pytest.skip("only root can mount a file system")
    board.directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", board.directory], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    yield
    subprocess.run(["umount", "--lazy", board.directory], check=True)  # the board's rsync may still be ending


def test_a_disk_without_room_is_said_before_anything_is_sent(board, deploy, small_disk):
    with pytest.raises(NoSpace, match=r"0 MB free where .*, wanted 1 for this bundle and 67 to spare"):
        deploy()

    assert board.files() == []


def test_a_disk_that_runs_full_leaves_nothing_that_looks_whole(board, deploy, small_disk):
    roomy = f"Filesystem 1024-blocks Used Available Capacity Mounted\nnone 999 1 {SPARE} 1% {board.directory}"
    (board.programs / "df").write_text(f"#!/bin/sh\necho '{roomy}'\n")
    (board.programs / "df").chmod(0o755)

    with pytest.raises(NoSpace, match=r"its disk became full while files were copied.*Free some space first"):
        deploy()

    assert_no_bundle(board)


def test_a_driver_that_is_not_loaded_is_named_with_what_to_do(board, deploy):
    board.play("axcl-smi", recorded("axcl-smi.driver.txt"), status=1)

    with pytest.raises(MissingDriver, match=r"0x8030010b: the card's driver is not loaded .*dkms status"):
        deploy()

    assert_no_bundle(board)


def test_a_card_that_is_not_there_is_said_with_those_that_are(deploy):
    with pytest.raises(NoSuchCard, match=rf"no card {CARD + 3} .*found {CARD} \(AX650N\)"):
        deploy(device=CARD + 3)


def test_a_card_too_small_for_the_models_is_refused(board, deploy):
    board.play_smi("7040 MiB", "   0 MiB")

    with pytest.raises(
        NotEnoughCmm, match=r"0 MiB of CMM, the files of text_encoder, unet, vae_decoder alone are 1 MiB"
    ):
        deploy()


@pytest.mark.parametrize("text", ["", "Segmentation fault\n", recorded_smi()[:500]])
def test_a_table_that_cannot_be_read_is_quoted(board, deploy, text):
    board.play("axcl-smi", text)

    with pytest.raises(UnreadableOutput, match=r"axcl-smi printed: .*; wanted"):
        deploy()


def test_an_axcl_smi_that_fails_in_other_words_is_quoted(board, deploy):
    board.play("axcl-smi", "free(): invalid pointer\n", status=134)

    with pytest.raises(FailedOnBoard, match=r"`axcl-smi` failed \(status 134\): free\(\): invalid pointer"):
        deploy()


def test_programs_that_are_missing_are_all_named(board, deploy):
    for name in ("axcl-smi", "axcl_run_model"):
        (board.programs / name).unlink()

    with pytest.raises(MissingProgram, match=r"axcl_run_model, axcl-smi: axclhost, the card's driver package"):
        deploy()


@pytest.mark.parametrize(
    "told",
    [
        {"emulated": True},
        {"models": {"unet": {"role": "denoiser", "files": ["unet.axmodel"], "emulated": True}}},
        {"head": EMULATOR},  # whatever the manifest says
        {"head": EMULATOR, "graphs": ("down", "up")},
    ],
)
def test_an_emulated_model_is_refused_before_the_board_is_asked(deploy, tmp_path, told):
    manifest = write_bundle(tmp_path / "emulated", **told)

    with pytest.raises(EmulatedModel, match="was made by axbake's emulator; it runs on hosts, not on boards"):
        deploy(manifest, host="nowhere.invalid")


def test_a_bundle_whose_files_are_not_those_it_lists_is_refused(deploy, manifest):
    (manifest.parent / "unet.axmodel").write_bytes(b"\x08\x0a\x12\x07Pulsar2")
    shutil.rmtree(manifest.parent / "schedules")

    with pytest.raises(
        DamagedBundle, match=r"unet.axmodel, schedules/euler-20.npz, schedules/euler-10.npz: does not match"
    ):
        deploy()


def test_a_bundle_of_another_format_is_to_be_made_anew(deploy, tmp_path):
    manifest = write_bundle(tmp_path / "old", format=1)

    with pytest.raises(DamagedBundle, match=r"manifest.json: format 1, wanted 2\. Delete it and run again"):
        deploy(manifest)


def test_a_component_of_several_graphs_is_copied_and_counted_whole(board, deploy, tmp_path):
    manifest = write_bundle(tmp_path / "chain", graphs=("down", "mid", "up"))

    assert "unet/mid.axmodel" in deploy(manifest)["files"]
    assert_there(board, manifest)
    board.play_smi("7040 MiB", "   0 MiB")
    with pytest.raises(NotEnoughCmm, match=r"the files of text_encoder, unet, vae_decoder alone are 1 MiB"):
        deploy(manifest)


def test_a_file_that_is_changed_on_the_way_is_not_taken(board, manifest, deploy):
    sums = board.programs / "sha256sum"
    sums.write_text(
        '#!/bin/sh\ncase "$*" in *--check*) echo "unet.axmodel: FAILED"; exit 1;; esac\nexec /usr/bin/sha256sum "$@"\n'
    )
    sums.chmod(0o755)

    with pytest.raises(
        FailedOnBoard,
        match=r"the files that arrived differ from those that were sent; run again .*unet.axmodel: FAILED",
    ):
        deploy()

    assert_no_bundle(board)
    sums.unlink()
    deploy()
    assert_there(board, manifest)


@pytest.mark.parametrize("name", ["a $(touch owned) b", "a;touch owned", "a'b\"c `touch owned`", "a\\b &&touch owned"])
def test_a_directory_is_a_path_and_no_part_of_a_command_whatever_it_is_called(board, manifest, deploy, tmp_path, name):
    """The config's schema lets no such name through; what runs on the board does not rely on it."""
    board.directory = tmp_path / name

    deploy()

    assert_there(board, manifest)
    homes = [Path.home(), tmp_path, board.directory, board.directory / "tiny"]
    assert [home for home in homes if (home / "owned").exists()] == []


def test_a_files_name_ends_no_list_of_names(board, deploy, manifest, tmp_path):
    told = json.loads(manifest.read_text())
    for name in ("NAMES", "SUMS", "touch owned", "-rf"):
        (manifest.parent / name).write_text("whatever")
        told["files"][name] = {"sha256": file_sha256(manifest.parent / name), "bytes": 8}
    manifest.write_text(json.dumps(told))

    deploy()

    assert_there(board, manifest)
    homes = [Path.home(), tmp_path, board.directory, board.directory / "tiny"]
    assert [home for home in homes if (home / "owned").exists()] == []
    del told["files"]["-rf"]
    (manifest.parent / "-rf").unlink()
    manifest.write_text(json.dumps(told))
    deploy()
    assert_there(board, manifest)
    assert not (board.directory / "tiny" / "-rf").exists()

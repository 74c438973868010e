"""Builds in containers of a real engine: what a container gets, who owns what it makes, and that none is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from axbake.toolchain.axmodel import read_axmodel
from axbake.toolchain.engines import Engine, EngineError, container_name, is_orphan
from axbake.toolchain.launch import Launch, WrongToolchain
from axbake.toolchain.pulsar2 import CompileError
from tests.decoder import LAUNCH, check_decoder, compile_decoder, write_inputs
from tests.services.engine import IMAGE
from tests.workflow.project import COMPONENTS, Project

ROOT = Path(__file__).parents[2]
HANGING = {"compiler": {"check_tensor_black_list": ["double:hang"]}}
# A job of a hanging build, as Snakemake runs jobs: a process of its own.
JOB = f"""
import json, logging, sys
from pathlib import Path
from tests.decoder import compile_decoder
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
inputs = {{name: Path(path) for name, path in json.loads(sys.argv[2]).items()}}
compile_decoder(Path.cwd(), inputs, sys.argv[1], fields={HANGING!r})
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    return write_inputs(tmp_path_factory.mktemp("decoder"))


@pytest.fixture
def job(engine, containers, inputs, tmp_path):
    """A process whose build hangs in a container, after its log has said so; and the container's name."""
    command = [sys.executable, "-c", JOB, engine, json.dumps({name: str(path) for name, path in inputs.items()})]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "calibrating 0 of 3" in line:
            break
    else:
        pytest.fail("the build did not begin to calibrate")
    (name,) = containers()
    yield process, name
    process.kill()
    process.wait()
    process.stdout.close()


def soon(true, seconds: float = 300) -> bool:
    """Whether *true* holds within so many *seconds*."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


def test_a_model_is_compiled_and_checked_in_containers(engine, containers, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    made = compile_decoder(tmp_path, inputs, engine)
    check = check_decoder(made, inputs, engine, tmp_path)

    assert read_axmodel(made["axmodel"]).producer == "Pulsar2"
    assert json.loads(made["record"].read_text())["toolchain"] == engine
    assert check["outputs"]["sample"]["sqnr_db"] > 40
    # What its image says is asked once.
    assert [path.stem for path in Path(".axbake/pulsar2").iterdir()] == [Engine(engine, IMAGE).image_id()]


def test_a_container_gets_the_jobs_files_and_an_interrupt_ends_it(engine, containers, job):
    process, name = job
    (said,) = json.loads(subprocess.run([engine, "inspect", name], capture_output=True, check=True).stdout)

    mounts = {mount["Destination"]: mount["RW"] for mount in said["Mounts"]}
    assert mounts == {"/work": False, "/work/out": True}
    assert said["HostConfig"]["NetworkMode"] == "none"
    assert said["HostConfig"]["AutoRemove"] is True
    process.send_signal(signal.SIGINT)
    assert process.wait(300) != 0
    assert containers() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_is_ended_takes_its_container_along(containers, job, number):
    process, _ = job

    process.send_signal(number)  # SIGTERM is what `scancel` sends; SIGKILL what follows it, or a kill -9

    process.wait(300)
    assert soon(lambda: containers() == [])


def test_a_container_whose_job_and_client_were_killed_at_once_is_removed_by_the_next(engine, containers, job, inputs):
    process, name = job
    assert not is_orphan(name)
    Engine(engine, IMAGE).remove_orphans()
    assert containers() == [name]  # its job lives
    clients = subprocess.run(["pgrep", "-f", f"{engine} run .*{name}"], capture_output=True, text=True, check=True)
    os.kill(process.pid, signal.SIGSTOP)  # so that it does not clear up after its client
    for client in map(int, clients.stdout.split()):
        os.kill(client, signal.SIGKILL)
    process.kill()
    process.wait()
    assert containers() == [name]
    assert is_orphan(name)

    Engine(engine, IMAGE).remove_orphans()

    assert containers() == []


def test_a_build_is_ended_at_its_time_limit(engine, containers, inputs, tmp_path):
    # How far it comes before is the machine's to say.
    with pytest.raises(CompileError, match=r"reached its time limit of 0\.1 minutes, while \w+"):
        compile_decoder(tmp_path, inputs, engine, fields=HANGING, minutes=0.1)

    assert containers() == []


def test_a_build_killed_for_memory_says_so(engine, containers, inputs, tmp_path):
    fields = {"compiler": {"check_tensor_black_list": ["double:out-of-memory"]}}

    with pytest.raises(CompileError, match=r"killed, most likely because it ran out of memory \(status 137\)"):
        compile_decoder(tmp_path, inputs, engine, fields=fields)


@pytest.mark.parametrize(("user", "owner"), [("", (1000, 1000)), ("1000:1000", None)])
def test_what_a_container_makes_is_the_users(engine, containers, user, owner, tmp_path):
    tmp_path.chmod(0o755)  # pytest's own lets nobody else in
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", 1000, 1000)
    script = "echo made > out/model && ! echo > /work/graph && exit 3"

    command = Engine(engine, IMAGE).run_command(
        ["sh", "-c", script],
        container=container_name(),
        network="none",
        place=tmp_path,
        writable="out",
        user=user,
        owner=owner,
    )

    assert subprocess.run(command, capture_output=True).returncode == 3  # the program's own
    assert (tmp_path / "out" / "model").stat().st_uid == 1000
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_engine_that_cannot_says_what_to_do(engine, containers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = LAUNCH | {"toolchain": engine}

    with pytest.raises(EngineError, match=rf"{engine}: no image pulsar2:9\.9 on this machine.*{engine} load -i"):
        Launch(**how | {"image": "pulsar2:9.9"}).check()
    with pytest.raises(
        WrongToolchain, match=r"image pulsar2:4\.2 reports version 'version: 4\.2.*config\.yaml says 5\.1"
    ):
        Launch(**how | {"image": IMAGE, "version": "5.1"}).check()


@pytest.mark.skipif("os.environ.get('CONTAINER_ENGINE', 'docker') != 'docker'", reason="podman has no daemon")
def test_a_daemon_that_is_down_or_closed_to_the_user_is_told(engine, tmp_path, monkeypatch):
    docker = Engine("docker", IMAGE)
    program = subprocess.run(["which", "docker"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "docker").write_text(f'#!/bin/sh\nexec setpriv --reuid=65534 --clear-groups {program} "$@"\n')
    (tmp_path / "docker").chmod(0o755)

    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        with pytest.raises(EngineError, match=r"no permission for the daemon's socket.*the group `docker`"):
            docker.image_id()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere.sock")
    with pytest.raises(EngineError, match=r"the daemon does not answer\. Start it"):
        docker.image_id()


def in_containers(project: Project, engine: str, **fields: str) -> None:
    """Have *project* compile by *engine*, with *fields* of Pulsar2's config by component, and nothing drawn."""
    project.edit("config/config.yaml", "toolchain: emulator", f"toolchain: {engine}")
    for component, said in fields.items():
        project.edit("config/config.yaml", "\npulsar2:\n", f"\npulsar2:\n  {component}: {said}\n")


def test_a_baked_project_is_compiled_and_checked_in_containers_and_one_that_fails_says_why(engine, containers, project):
    fault = "{compiler: {check_tensor_black_list: ['double:tiling']}}"
    in_containers(project, engine, text_encoder=fault)

    said = project.refusal(*(f"results/tiny/{component}.axmodel" for component in COMPONENTS))

    assert (
        "CompileError: text_encoder: docker: the NPU backend cannot split an operator".replace("docker", engine) in said
    )
    log = (project.directory / "logs" / "tiny" / "build" / "text_encoder.log").read_text()
    assert "Traceback" in log and "yasched.exceptions.TileFailException" in log
    for component in ("unet", "vae_encoder", "vae_decoder"):  # `keep-going`
        model = read_axmodel(project.directory / "results" / "tiny" / f"{component}.axmodel")
        assert (model.producer, model.hardware, model.npu_mode) == ("Pulsar2", "AX650", "NPU3")
        log = (project.directory / "logs" / "tiny" / "build" / f"{component}.log").read_text()
        assert re.search(r"INFO calibrating (\d+) of \1, \d+:\d\d", log)

    project.edit("config/config.yaml", fault, "{}")
    project.bake(*(f"results/tiny/check/{component}.json" for component in COMPONENTS))

    for component in COMPONENTS:
        check = json.loads((project.directory / "results" / "tiny" / "check" / f"{component}.json").read_text())
        assert check["emulated"] is False
        assert all(output["sqnr_db"] > 20 for output in check["outputs"].values())
    assert containers() == []


def test_an_interrupted_run_leaves_no_container(engine, containers, project):
    in_containers(project, engine, vae_decoder="{compiler: {check_tensor_black_list: ['double:hang']}}")
    command = [*project.command, "results/tiny/vae_decoder.axmodel"]
    log = project.directory / "logs" / "tiny" / "build" / "vae_decoder.log"
    log.unlink()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen(command, cwd=project.directory, env=project.environment, start_new_session=True, **pipes)
    while not (log.is_file() and "INFO calibrating 0 of" in log.read_text()):
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.1)
    assert len(containers()) == 1

    os.killpg(run.pid, signal.SIGINT)  # a Ctrl-C, which reaches all processes of the terminal

    run.communicate(timeout=600)
    assert run.returncode != 0
    assert soon(lambda: containers() == [])
    assert not (project.directory / "results" / "tiny" / "vae_decoder.axmodel").exists()


def test_an_image_that_is_not_there_stops_a_run_before_its_first_job(engine, fresh):
    in_containers(fresh, engine)
    fresh.edit("config/config.yaml", 'image: ""', "image: pulsar2:none")

    said = fresh.refusal("results/tiny/vae_decoder.axmodel")

    assert f"EngineError: {engine}: no image pulsar2:none on this machine" in said
    assert "Traceback" not in said
    assert fresh.results() == []

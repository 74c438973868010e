"""A bundle's server over real HTTP: what clients that are not ours draw, and what comes back where nothing is drawn."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2 as httpx
import numpy as np
import onnx
import openai
import pytest
import uvicorn
import webuiapi
from PIL import Image, ImageDraw, ImageFilter

from axbake.runtime import axcl, command
from axbake.runtime.bundle import read_bundle
from axbake.runtime.model import Session
from axbake.runtime.serve import engine as engine_module
from axbake.runtime.serve import guards
from axbake.runtime.serve import loaded as loaded_module
from axbake.runtime.serve.app import application
from axbake.runtime.serve.command import run as run_server
from axbake.runtime.serve.engine import DONE, INTERRUPTED, Engine
from axbake.runtime.serve.loaded import Order
from axbake.runtime.serve.preview import Preview
from tests.unit.test_card_chain import card, compute, described, standin  # noqa: F401
from tests.unit.test_runtime_bundle import PICTURE, bundle, copy_of  # noqa: F401

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-some-length"
DEADLINE = 600  # seconds for what takes one; machines that run tests are slow
WIDTH, HEIGHT = PICTURE.width, PICTURE.height


class Gated(Session):
    """A denoiser whose runs wait until the test lets them go on."""

    def __init__(self, denoiser, gate):
        super().__init__(denoiser.name, denoiser.inputs, denoiser.outputs, None, component=denoiser.component)
        self.denoiser, self.gate = denoiser, gate

    def run_all(self, feeds):
        assert self.gate.wait(DEADLINE)
        return self.denoiser.run_all(feeds)


@dataclass
class Served:
    """A server in a thread of this process."""

    engine: Engine
    url: str
    server: uvicorn.Server
    gates: list

    def hold(self):
        """Let all drawings wait before their next step."""
        for gate in self.gates:
            gate.clear()

    def go_on(self):
        for gate in self.gates:
            gate.set()

    @contextlib.contextmanager
    def held(self):
        self.hold()
        try:
            yield
        finally:
            self.go_on()


def within_deadline(happened):
    """Whether *happened* becomes true before long."""
    end = time.monotonic() + DEADLINE
    while not happened() and time.monotonic() < end:
        time.sleep(0.01)
    return happened()


@pytest.fixture(scope="module")
def tiny(bundle, tmp_path_factory):  # noqa: F811
    """The tiny bundle as a bake writes it, with the program and a second size of its name."""
    settings = json.loads((bundle / "manifest.json").read_text())["settings"]
    more = {"axbake": "1", "checkpoint": {"sha256": "ab" * 32, "title": "Tiny"}}
    return copy_of(
        bundle,
        tmp_path_factory.mktemp("served") / "tiny",
        **{"settings": {**settings, "prediction_type": "flow_prediction"}, **more},
    )


@contextlib.contextmanager
def serving(folders, token="", **how):
    """The server of bundles."""
    engine = Engine([read_bundle(folder) for folder in folders], **{"threads": 1, **how})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(
        application(engine, token=token), port=port, log_config=None, lifespan="off", ws="none", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    engine.start()
    thread.start()
    assert within_deadline(lambda: server.started and engine.ready)
    gates = []
    for one in engine.cards:
        for loaded in one.loaded.values():
            gates.append(threading.Event())
            gates[-1].set()
            loaded.models = replace(loaded.models, denoiser=Gated(loaded.models.denoiser, gates[-1]))
    served = Served(engine, f"http://127.0.0.1:{port}", server, gates)
    try:
        yield served
    finally:
        served.go_on()
        server.should_exit = True
        thread.join()
        engine.close()


@pytest.fixture(scope="module")
def served(tiny):
    with serving([tiny], most_waiting=4) as served:
        yield served


@pytest.fixture
def client(served):
    return openai.OpenAI(api_key="any", base_url=f"{served.url}/v1", max_retries=0)


@pytest.fixture
def web_ui(served):
    return webuiapi.WebUIApi(baseurl=f"{served.url}/sdapi/v1")


@pytest.fixture
def http(served):
    with httpx.Client(base_url=served.url, timeout=DEADLINE) as http:
        yield http


@pytest.fixture
def program(tiny, tmp_path):
    """A function that gives the bytes that a program of the bundle draws."""

    def run(name, *arguments):
        path = tmp_path / "drawn.png"
        assert command.run(name, tiny, [*map(str, arguments), "--output", str(path), "--threads", "1"]) == 0
        return path.read_bytes()

    return run


def encoded(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    (tmp_path / "photo.png").write_bytes(encoded(Image.fromarray(pixels)))
    return tmp_path / "photo.png"


def mask_of(size):
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((0, 0, size[0] // 2, size[1] // 2), fill=255)
    return mask


def png(image):
    """The bytes of a picture of OpenAI's answer."""
    return base64.b64decode(image.b64_json)


def test_openais_client_draws_what_txt2img_draws(client, program):
    assert [model.id for model in client.models.list()] == ["tiny"]

    drawn = client.images.generate(prompt="a (red:1.4) cat", model="tiny", size="16x24", n=2, extra_body={"seed": 7})

    wanted = ["--prompt", "a (red:1.4) cat"]
    assert [png(image) for image in drawn.data] == [program("txt2img", *wanted, "--seed", seed) for seed in (7, 8)]
    assert (
        Image.open(io.BytesIO(png(drawn.data[0]))).text["parameters"].startswith("a (red:1.4) cat\nNegative prompt: b")
    )
    assert drawn.axbake["emulated"] and len(drawn.axbake["timings"][0]["step_seconds"]) == 3
    more = {"seed": 3, "guidance_scale": 2.5, "negative_prompt": ""}
    by_address = client.images.generate(prompt="a dog", response_format="url", extra_body=more)
    found = httpx.get(by_address.data[0].url)
    wanted = ["--prompt", "a dog", "--seed", 3, "--guidance-scale", 2.5, "--negative-prompt", ""]
    assert found.content == program("txt2img", *wanted)


def test_openais_client_draws_over_a_picture_and_within_a_mask(client, program, photo, tmp_path):
    white = mask_of((40, 48))
    white.save(tmp_path / "white.png")
    clear = Image.new("RGBA", (40, 48))
    clear.putalpha(white.point(lambda value: 255 - value))
    asked = {"prompt": "a dog", "extra_body": {"seed": 5, "strength": 0.7}}
    options = ["--prompt", "a dog", "--seed", 5, "--strength", 0.7]

    drawn = client.images.edit(image=photo.open("rb"), **asked)
    masked = client.images.edit(image=photo.open("rb"), mask=encoded(clear), **asked)

    assert png(drawn.data[0]) == program("img2img", photo, *options)
    assert png(masked.data[0]) == program("img2img", photo, "--mask", tmp_path / "white.png", *options)
    assert png(drawn.data[0]) != png(masked.data[0])


def test_a_client_of_automatic1111_draws_what_the_programs_draw(web_ui, program, photo, tmp_path):
    assert web_ui.util_get_model_names() == ["tiny [ababababab]"] and web_ui.util_get_sampler_names() == ["Euler"]
    web_ui.util_set_model("tiny")
    assert web_ui.util_get_current_model() == "tiny [ababababab]"

    drawn = web_ui.txt2img(prompt="a dog", seed=7, n_iter=2, cfg_scale=4)

    plain = ["--prompt", "a dog", "--negative-prompt", ""]
    wanted = [program("txt2img", *plain, "--seed", seed) for seed in (7, 8)]
    assert [base64.b64decode(image) for image in drawn.json["images"]] == wanted
    assert (drawn.info["seed"], drawn.info["all_seeds"], drawn.info["width"]) == (7, [7, 8], WIDTH)
    assert drawn.info["axbake"]["emulated"] and drawn.info["infotexts"][0] == drawn.images[0].text["parameters"]
    assert drawn.info["axbake"]["notes"] == [
        "width: 512 became 16, which tiny was compiled for",
        "height: 512 became 24, which tiny was compiled for",
        "sampler_name: Euler a became Euler, which tiny was compiled for",
        "steps: 20 became 3, the nearest that tiny has a schedule for",
    ]
    assert (drawn.parameters["width"], drawn.parameters["sampler_name"], drawn.parameters["steps"]) == (16, "Euler", 3)

    white = mask_of((40, 48))
    white.save(tmp_path / "white.png")
    asked = {"images": [Image.open(photo)], "prompt": "a dog", "seed": 7, "cfg_scale": 4, "denoising_strength": 0.7}
    fixed = {"width": WIDTH, "height": HEIGHT, "steps": 3, "sampler_name": "Euler", "resize_mode": 1}
    over = web_ui.img2img(**asked, **fixed)
    masked = web_ui.img2img(**asked, **fixed, mask_image=white, mask_blur=0, inpainting_fill=1, inpaint_full_res=False)
    options = [*plain, "--seed", 7, "--strength", 0.7]
    assert base64.b64decode(over.json["images"][0]) == program("img2img", photo, *options)
    assert base64.b64decode(masked.json["images"][0]) == program(
        "img2img", photo, "--mask", tmp_path / "white.png", *options
    )
    part = web_ui.img2img(**asked, mask_image=white)
    assert part.image.size == (40, 48)
    kept = np.asarray(white.filter(ImageFilter.GaussianBlur(4))) == 0
    assert (np.asarray(part.image)[kept] == np.asarray(Image.open(photo))[kept]).all() and kept.any()


def test_progress_has_steps_and_a_preview_and_an_interrupt_ends_the_picture(served, web_ui):
    served.hold()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(web_ui.txt2img, prompt="a dog", seed=7)
        assert within_deadline(served.engine.drawing)
        (job,) = served.engine.drawing()
        job.preview, job.step = served.engine.cards[0].loaded["tiny"].preview.png(np.zeros((1, 6, 6, 4), np.float32)), 1
        said = web_ui.get_progress()
        assert web_ui.interrupt() == {}
        served.go_on()
        drawn = asked.result()

    assert (said["state"]["sampling_step"], said["state"]["sampling_steps"]) == (1, 3)
    assert said["progress"] == pytest.approx(1 / 3) and said["state"]["job_count"] == 1
    assert Image.open(io.BytesIO(base64.b64decode(said["current_image"]))).size == (4, 6)
    assert drawn.images == [] and drawn.info["axbake"]["interrupted"]
    assert web_ui.get_progress()["state"]["job_count"] == 0


def test_a_client_that_goes_away_ends_its_picture_whether_it_is_drawn_or_waits(served, caplog):
    ask = {"json": {"prompt": "a dog"}, "timeout": httpx.Timeout(DEADLINE, read=0.2)}
    with served.held():
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{served.url}/v1/images/generations", **ask)
        drawn = served.engine.drawing()
        assert within_deadline(lambda: all(job.stop.is_set() for job in drawn) and served.engine.waiting == 0)

    assert within_deadline(lambda: not served.engine.drawing())
    assert [job.state for job in drawn] == [INTERRUPTED] and "Traceback" not in caplog.text


def test_the_queue_has_an_end_and_the_client_is_told_to_come_back(served, http):
    with served.held():
        jobs = [http.post("/api/draw", json={"prompt": "a dog"}) for _ in range(6)]
        ahead = [http.get(f"/api/jobs/{one.json()['id']}").json() for one in jobs[:5]]
        state = http.get("/api/state").json()
        with pytest.raises(openai.RateLimitError, match="4 drawings are waiting, and no more than 4 may"):
            openai.OpenAI(api_key="any", base_url=f"{served.url}/v1", max_retries=0).images.generate(prompt="a dog")
        gone = http.post(f"/api/jobs/{jobs[1].json()['id']}/interrupt").json()

    assert [one.status_code for one in jobs] == [202] * 5 + [429] and jobs[5].headers["retry-after"] == "5"
    assert [one["ahead"] for one in ahead] == [0, 0, 1, 2, 3]
    assert (state["waiting"], state["cards"][0]["what"], state["cards"][0]["loaded"]) == (4, "drawing", ["tiny"])
    assert (gone["state"], gone["pictures"]) == ("interrupted", [])
    ends = [served.engine.job(one.json()["id"]).over.result(DEADLINE).state for one in jobs[:5]]
    assert ends == [DONE, INTERRUPTED, DONE, DONE, DONE]


def test_a_drawing_of_the_page_ends_when_nobody_asks_for_it(served, http, monkeypatch):
    with served.held():
        first, second = (http.post("/api/draw", json={"prompt": "a dog"}).json()["id"] for _ in range(2))
        assert within_deadline(served.engine.drawing)
        monkeypatch.setattr(engine_module, "LEASE", 0)
        assert within_deadline(lambda: served.engine.waiting == 0)

    assert within_deadline(lambda: not served.engine.drawing())
    monkeypatch.undo()
    assert {http.get(f"/api/jobs/{one}").json()["state"] for one in (first, second)} == {"interrupted"}


def test_the_pages_own_interface_draws_and_says_how(http, program, photo):
    content = base64.b64encode(photo.read_bytes()).decode()
    white = base64.b64encode(encoded(mask_of((40, 48)))).decode()
    order = {"prompt": "a dog", "seed": 5, "strength": 0.7, "image": f"data:image/png;base64,{content}", "mask": white}
    (photo.parent / "white.png").write_bytes(base64.b64decode(white))

    told = http.post("/api/draw", json={**order, "blur": 0}).json()
    while not told["over"]:
        told = http.get(f"/api/jobs/{told['id']}").json()

    (made,) = told["pictures"]
    options = ["--mask", photo.parent / "white.png", "--prompt", "a dog", "--seed", 5, "--strength", 0.7]
    wanted = program("img2img", photo, *options, "--negative-prompt", "")
    assert http.get(made["url"]).content == wanted
    assert made["parameters"] == Image.open(io.BytesIO(wanted)).text["parameters"]


# What is sent -> status, parameter, and what comes back
BAD: dict = {
    "no JSON": (b"{", 400, None, "the body is not an object in JSON"),
    "deep JSON": (b"[" * 100_000, 400, None, "the body is not an object in JSON"),
    "a list": ([], 400, None, "the body is not an object in JSON"),
    "no prompt": ({}, 400, "prompt", "prompt: nothing; wanted a text"),
    "a prompt that is none": ({"prompt": 3}, 400, "prompt", "prompt: 3; wanted text"),
    "a long prompt": ({"prompt": "a" * 10_001}, 400, "prompt", "prompt: 10001 characters; wanted 10000 at most"),
    "a size": ({"prompt": "a", "size": "512x512"}, 400, "size", r"size: '512x512'; wanted .* compiled for: 16x24 \(tiny\)"),
    "a model": ({"prompt": "a", "model": "../tiny"}, 404, "model", r"model '../tiny'; wanted one of tiny"),
    "a list as model": ({"prompt": "a", "model": ["tiny"]}, 404, "model", "wanted one of tiny"),
    "steps": ({"prompt": "a", "steps": 4}, 400, "steps", "steps: 4; wanted one of 3, for which tiny has schedules"),
    "half a step": ({"prompt": "a", "steps": 2.5}, 400, "steps", "steps: 2.5; wanted a whole number"),
    "many": ({"prompt": "a", "n": 11}, 400, "n", "n: 11; wanted 1 to 10"),
    "guidance": ({"prompt": "a", "guidance_scale": 1e999}, 400, "guidance_scale", "guidance_scale: inf; wanted 1 to 100"),
    "a seed": ({"prompt": "a", "seed": 2**80}, 400, "seed", "seed: 1208925819614629174706176; wanted -1 to"),
    "a seed that is none": ({"prompt": "a", "seed": "x\x1b[2J"}, 400, "seed", r"seed: 'x\\x1b\[2J'; wanted a whole number"),
    "WebP": ({"prompt": "a", "output_format": "webp"}, 400, "output_format", "output_format: 'webp'; wanted png"),
    "a stream": ({"prompt": "a", "stream": True}, 400, "stream", "stream: True; wanted False"),
    "quality": ({"prompt": "a", "quality": "hd"}, 400, "quality", "quality: 'hd'; wanted auto or standard"),
    "something else": ({"prompt": "a", "lora": "x"}, 400, "lora", "unknown parameters: lora"),
    "a form": ({"prompt": "a", "response_format": "path"}, 400, "response_format", "wanted one of b64_json, url"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_openais_interface_cannot_draw_comes_back_in_its_form(http, what):
    sent, status, parameter, said = BAD[what]
    content = sent if isinstance(sent, bytes) else json.dumps(sent).encode()

    answer = http.post("/v1/images/generations", content=content, headers={"content-type": "application/json"})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, parameter) and set(error) == {
        *("message", "type", "param", "code")
    }
    assert re.search(said, error["message"])


BAD_WEB_UI: dict = {
    "a second pass": ("txt2img", {"enable_hr": True}, "enable_hr: True; wanted False: this server has no such feature"),
    "a script": ("txt2img", {"script_name": "x/y plot"}, "script_name: 'x/y plot'; wanted ''"),
    "an extension": ("txt2img", {"alwayson_scripts": {"ControlNet": {}}}, "alwayson_scripts: .*; wanted {}"),
    "files": ("txt2img", {"save_images": True}, "save_images: True; wanted False"),
    "many": ("txt2img", {"batch_size": 4, "n_iter": 4}, "batch_size × n_iter: 16; wanted 10 at most"),
    "guidance": ("txt2img", {"cfg_scale": 0}, "cfg_scale: 0; wanted 1 to 100"),
    "a model": ("txt2img", {"override_settings": {"sd_model_checkpoint": "x"}}, "sd_model_checkpoint: 'x'; wanted one of"),
    "a setting": ("txt2img", {"override_settings": {"eta": 1}}, "override_settings: .*; wanted sd_model_checkpoint alone"),
    "no picture": ("img2img", {}, "init_images: None; wanted a list of one picture in base64"),
    "an address": ("img2img", {"init_images": ["http://host/a.png"]}, "wanted the picture itself in base64; .* fetches nothing"),
    "a path": ("img2img", {"init_images": ["/etc/passwd"]}, "init_images: (not a picture|a damaged|'/etc/passwd')"),
    "a pickle": ("img2img", {"init_images": [base64.b64encode(b"\x80\x04c").decode()]}, "not a picture that can be read"),
    "a latent": ("img2img", {"init_images": ["{photo}"], "resize_mode": 3}, "resize_mode: 3; wanted 0, 1 or 2"),
    "a black mask": ("img2img", {"init_images": ["{photo}"], "mask": "{black}"}, "mask: no pixel is whiter than 127"),
    "no step": ("img2img", {"init_images": ["{photo}"], "denoising_strength": 0.1}, "strength: 0.1; wanted at least 0.3333"),
    "strength": ("img2img", {"init_images": ["{photo}"], "denoising_strength": 2}, "denoising_strength: 2; wanted 0 to 1"),
    "options": ("options", {"CLIP_stop_at_last_layers": 2}, "options CLIP_stop_at_last_layers; wanted sd_model_checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_WEB_UI)
def test_what_automatic1111s_interface_cannot_draw_comes_back_in_its_form(http, photo, what):
    address, sent, said = BAD_WEB_UI[what]
    put = {"{photo}": photo.read_bytes(), "{black}": encoded(Image.new("L", (40, 48)))}
    text = json.dumps(sent)
    for mark, content in put.items():
        text = text.replace(mark, base64.b64encode(content).decode())

    answer = http.post(f"/sdapi/v1/{address}", content=text)

    assert answer.status_code == 422
    assert re.search(said, answer.json()["detail"]) and answer.json()["errors"] == answer.json()["detail"]


def test_a_form_without_a_picture_or_with_a_wrong_mask_comes_back(http, photo):
    def sent(**files):
        answer = http.post("/v1/images/edits", data={"prompt": "a"}, files=files)
        return answer.status_code, answer.json()["error"]["message"]

    assert sent(other=b"x") == (400, "image: 0 pictures; wanted one file.")
    status, said = sent(image=photo.read_bytes(), mask=encoded(Image.new("RGBA", (8, 8))))
    assert (status, "a mask of 8x8 pixels for a picture of 40x48; wanted the same size" in said) == (400, True)
    assert http.post("/v1/images/edits", content=b"x").status_code == 400
    malformed = {"content-type": "multipart/form-data; boundary=x"}
    assert http.post("/v1/images/edits", content=b"--x\r\nnonsense", headers=malformed).status_code == 400


@pytest.mark.parametrize(
    "name", ["/../manifest.json", "/%2e%2e/manifest.json", "/page/../../command.py", "/pictures/../x.png"]
)
def test_no_address_is_a_path(served, name):
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"GET {name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(1 << 16), b""))

    assert answer.startswith(b"HTTP/1.1 404")


def test_who_may_ask(served, http, tiny):
    elsewhere = http.get("/api/state", headers={"host": "evil.example"})
    page = http.post("/api/draw", json={"prompt": "a"}, headers={"origin": "https://evil.example"})
    null = http.post("/sdapi/v1/interrupt", headers={"origin": "null"})
    odd = http.post("/sdapi/v1/interrupt", headers={"origin": "http://["})
    own = http.get("/api/state", headers={"origin": served.url})

    assert (elsewhere.status_code, elsewhere.json()["error"]) == (421, "wrong_host")
    assert (page.status_code, null.status_code, odd.status_code, own.status_code) == (403, 403, 403, 200)
    for header, value in guards.HEADERS.items():
        assert all(answer.headers[header] == value for answer in (elsewhere, own, http.get("/")))
    assert "unsafe" not in own.headers["content-security-policy"] and own.headers["x-axbake-emulated"] == "true"
    app = application(served.engine, token=TOKEN)
    with httpx.Client(transport=Asgi(app), base_url="http://pi.local") as told:
        assert {told.get(path).status_code for path in ("/", "/page.js", "/page.css", "/icon.svg", "/health")} == {200}
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic !"},
            {"authorization": "Bearer"},
        ):
            refused = told.get("/v1/models", headers=headers)
            assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        basic = base64.b64encode(f"user:{TOKEN}".encode()).decode()
        for value in (f"Bearer {TOKEN}", f"Basic {basic}"):
            assert told.get("/v1/models", headers={"authorization": value}).status_code == 200


class Asgi(httpx.BaseTransport):
    """Requests straight to an ASGI application."""

    def __init__(self, app):
        self.app = app

    def handle_request(self, request):
        async def ask():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://pi.local") as client:
                answer = await client.request(request.method, request.url, headers=request.headers)
                return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

        return asyncio.run(ask())


def test_bodies_have_an_end(served, http, monkeypatch):
    monkeypatch.setattr(guards, "MOST_BODY", 1 << 20)
    monkeypatch.setattr(guards, "PATIENCE", 0.2)

    def pieces(count):
        yield from [b"x" * (1 << 16)] * count

    assert http.post("/api/draw", content=b"x" * (2 << 20)).status_code == 413
    assert http.post("/api/draw", content=pieces(40)).status_code == 413
    assert http.post("/api/draw", content=pieces(2)).status_code == 400
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"POST /api/draw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 408")


def test_a_fault_of_the_runtime_fails_one_picture_and_not_the_server(served, client, caplog, monkeypatch):
    loaded = served.engine.cards[0].loaded["tiny"]
    with monkeypatch.context() as broken:
        broken.setattr(loaded, "_drawing", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError, match=r"the drawing failed \(ZeroDivisionError\)"):
            client.images.generate(prompt="a dog")
    assert "ZeroDivisionError" in caplog.text

    assert client.images.generate(prompt="a dog").data
    assert served.engine.cards[0].loaded["tiny"] is not loaded
    again = served.engine.cards[0].loaded["tiny"]
    again.models = replace(again.models, denoiser=Gated(again.models.denoiser, served.gates[0]))


def test_many_clients_get_each_their_own_picture(served, http, program):
    def ask(seed):
        how = {"json": {"prompt": "a dog", "seed": seed, "response_format": "b64_json"}, "timeout": DEADLINE}
        while (answer := httpx.post(f"{served.url}/v1/images/generations", **how)).status_code == 429:
            time.sleep(0.01)
        return base64.b64decode(answer.json()["data"][0]["b64_json"])

    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(ask, range(16)))

    assert [drawn[seed] for seed in (0, 15)] == [
        program("txt2img", "--prompt", "a dog", "--seed", seed) for seed in (0, 15)
    ]
    assert len(set(drawn)) == 16


def test_an_inpainting_model_draws_what_txt2img_draws_and_wants_a_mask(tiny, photo, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "inpainting")
    first = folder / "transformer" / "part_00.axmodel"
    model = onnx.load(first)
    (kernel,) = (one for one in model.graph.initializer if one.name == "k0")
    wider = (
        np.random.default_rng(0).normal(size=(6, 13, 1, 1)).astype(np.float32)
    )  # the latent, mask, and picture's latent
    kernel.CopyFrom(onnx.numpy_helper.from_array(wider, "k0"))
    (sample,) = (one for one in model.graph.input if one.name == "sample")
    sample.type.tensor_type.shape.dim[1].dim_value = 13
    onnx.save(model, first)
    (folder / "canvas").mkdir()
    shutil.copy(photo, folder / "canvas" / "image.png")
    mask_of((40, 48)).save(folder / "canvas" / "mask.png")
    manifest = json.loads((folder / "manifest.json").read_text()) | {"canvas": ["canvas/image.png", "canvas/mask.png"]}
    for path in (first, *(folder / "canvas").iterdir()):
        manifest["files"][path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    clear = Image.new("RGBA", (40, 48))
    clear.putalpha(mask_of((40, 48)).point(lambda value: 255 - value))
    options = ["--prompt", "a dog", "--seed", "5", "--threads", "1", "--output", str(tmp_path / "drawn.png")]
    assert command.run("txt2img", folder, options) == 0

    with serving([folder]) as served:
        client = openai.OpenAI(api_key="any", base_url=f"{served.url}/v1", max_retries=0)
        asked = {"prompt": "a dog", "extra_body": {"seed": 5}}
        drawn = client.images.edit(image=photo.open("rb"), mask=encoded(clear), **asked)
        for refused in (
            lambda: client.images.edit(image=photo.open("rb"), **asked),
            lambda: client.images.generate(**asked),
        ):
            with pytest.raises(openai.BadRequestError, match="tiny draws on a picture: wanted a picture and a mask"):
                refused()

    assert png(drawn.data[0]) == (tmp_path / "drawn.png").read_bytes()


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory):
    """Folders of two bundles that differ in their names."""
    return [tiny, copy_of(tiny, tmp_path_factory.mktemp("two") / "other", model="other")]


def test_bundles_that_do_not_fit_beside_each_other_leave_in_turn(two, caplog):
    caplog.set_level(logging.INFO)
    orders = [Order(name, replace(PICTURE, model=name)) for name in ("tiny", "other", "tiny", "other")]

    def loads(**how):
        engine = Engine([read_bundle(folder) for folder in two], threads=1, **how)
        engine.start()
        caplog.clear()
        drawn = [engine.submit(order).over.result(DEADLINE) for order in orders]
        told = engine.cards[0].told, list(engine.cards[0].loaded)
        engine.close()
        assert [job.state for job in drawn] == [DONE] * 4
        assert drawn[0].results[0].png == drawn[2].results[0].png != drawn[1].results[0].png
        return len(re.findall("loaded other in", caplog.text)), *told

    assert loads() == (1, "", ["tiny", "other"])
    assert loads(memory=1) == (2, "tiny was unloaded to make room", ["other"])


@pytest.fixture
def compiled(two, tmp_path):
    """The two bundles, with models that a card runs: a stand-in for AXCL's library computes with the graph beside each."""
    folders = []
    for folder in two:
        made = shutil.copytree(folder, tmp_path / folder.name)
        manifest = json.loads((made / "manifest.json").read_text()) | {"emulated": False}
        for path in made.rglob("*.axmodel"):
            model = onnx.load(path)
            onnx.save(model, path.with_suffix(".onnx"))
            model.producer_name = "Pulsar2"
            onnx.save(model, path)
            described([path], graphs=[path.with_suffix(".onnx")])
            manifest["files"][path.relative_to(made).as_posix()]["bytes"] = path.stat().st_size
        (made / "manifest.json").write_text(json.dumps(manifest))
        folders.append(made)
    return folders


def test_on_a_card_bundles_leave_that_do_not_fit_by_what_its_driver_says(two, compiled, card, standin, monkeypatch):  # noqa: F811
    monkeypatch.setattr(loaded_module, "find_library", lambda: "stand-in")
    card(10 << 20)  # 7 graphs of 1 MiB each take more than half
    axcl._cards.clear()  # the thread that draws opens it again
    standin.reset(10 << 20, lambda path, *memory: compute(Path(path).with_suffix(".onnx"), *memory))
    emulated, engine = (Engine([read_bundle(one) for one in folders], threads=1) for folders in (two, compiled))
    emulated.start()
    engine.start()

    for name in ("tiny", "other", "tiny"):
        wanted, drawn = (
            one.submit(Order(name, replace(PICTURE, model=name))).over.result(DEADLINE) for one in (emulated, engine)
        )
        assert (drawn.state, drawn.error) == (DONE, "")
        found, expected = (
            np.asarray(Image.open(io.BytesIO(job.results[0].png))).astype(int) for job in (drawn, wanted)
        )
        assert np.abs(found - expected).max() <= 1
        assert list(engine.cards[0].loaded) == [name]

    assert engine.cards[0].provider == "AXCLRTExecutionProvider"
    assert standin.counts().peak <= 10 << 20 and standin.counts().unloads == 12
    emulated.close()
    engine.close()


def test_two_cards_draw_at_once_and_a_bundle_goes_to_the_card_that_has_it(two):
    with serving(two, devices=(0, 1)) as served:
        with served.held():
            jobs = [served.engine.submit(Order("tiny", PICTURE)) for _ in range(2)]
            assert within_deadline(lambda: len(served.engine.drawing()) == 2)
            assert {job.card for job in served.engine.drawing()} == {0, 1}
        assert {job.over.result(DEADLINE).state for job in jobs} == {DONE}
        served.engine.cards[0].loaded.pop("tiny")
        assert served.engine.submit(Order("tiny", PICTURE)).over.result(DEADLINE).card == 1


def test_names_of_bundles_differ(two):
    with pytest.raises(ValueError, match="two bundles are called tiny; wanted names that differ"):
        Engine([read_bundle(two[0])] * 2)


def test_the_preview_is_the_picture_of_a_latent_that_is_linear_in_it():
    random = np.random.default_rng(0)
    colours = random.uniform(0.2, 0.8, (6, 4, 3))
    to_latent = np.array([[1, 1, 1, 0], [1, -1, 0, 1], [-1, 0, 1, 1]])
    latent = (colours @ to_latent).transpose(2, 0, 1)[None].astype(np.float32)
    preview = Preview(4, 8)
    assert preview.png(latent) is None

    preview.learn(latent, (np.repeat(np.repeat(colours, 8, 0), 8, 1) * 255).round().astype(np.uint8))

    shown = np.asarray(Image.open(io.BytesIO(preview.png(latent))))
    assert np.abs(shown / 255 - colours).max() < 0.05
    assert shown.shape == (6, 4, 3)


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (["--host", "0.0.0.0"], "", "everyone who reaches this machine could draw. Set AXBAKE_TOKEN"),
        (["--host", "0.0.0.0"], "short", "wanted a token of at least 16 printable ASCII characters"),
        (["--token-file", "{open}"], "", r"others can read it \(-rw-r--r--\). Run: chmod 600"),
        (["--bundle", "/nowhere"], "", "No such file"),
    ],
)
def test_a_server_that_is_not_safe_or_not_whole_does_not_start(
    tiny, tmp_path, monkeypatch, caplog, options, environment, said
):
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o644)
    monkeypatch.setenv("AXBAKE_TOKEN", environment)

    assert run_server(tiny, [one.format(open=tmp_path / "token") for one in options]) == 1
    assert re.search(said, caplog.text) and "short" not in caplog.text.replace("too short", "")


def test_the_unit_for_systemd_starts_the_server_as_it_was_called(tiny, capsys, tmp_path):
    assert run_server(tiny, ["--unit", "--port", "7861", "--token-file", str(tmp_path / "a 100% token")]) == 0

    text = capsys.readouterr().out
    command_line = (
        f'ExecStart="{sys.executable}" "{tiny}/serve.py" "--port" "7861" "--token-file" "{tmp_path}/a 100%% token"'
    )
    assert command_line in text and "Restart=always" in text and TOKEN not in text
    unit = tmp_path / "axbake.service"
    unit.write_text(text.replace(str(sys.executable), "/bin/sh"))
    if verify := shutil.which("systemd-analyze"):
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run([verify, "--user", "verify", unit], capture_output=True, text=True, env=environment)
        assert (done.returncode, "axbake.service" in done.stderr) == (0, False), done.stderr


@pytest.fixture
def whole(tiny, tmp_path):
    """The bundle with its programs, as they run on a board."""
    folder = shutil.copytree(tiny, tmp_path / "whole")
    shutil.copytree(ROOT / "axbake" / "runtime", folder / "axbake" / "runtime")
    (folder / "axbake" / "__init__.py").touch()
    shutil.copy(ROOT / "resources" / "bundle" / "serve.py", folder)
    return folder


def test_the_program_serves_again_after_it_was_killed(whole, program):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "AXBAKE_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}

    def is_ready():
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health").status_code == 200

    for end, status in ((signal.SIGKILL, -9), (signal.SIGTERM, (0, -15))):
        server = subprocess.Popen(
            [sys.executable, whole / "serve.py", "--port", str(port)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert within_deadline(is_ready)
            client = openai.OpenAI(api_key=TOKEN, base_url=f"{url}/v1", max_retries=0)
            drawn = client.images.generate(prompt="a dog", extra_body={"seed": 7})
            assert png(drawn.data[0]) == program("txt2img", "--prompt", "a dog", "--seed", 7)
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="wrong").images.generate(prompt="a dog")
        finally:
            server.send_signal(end)
        _, said = server.communicate(timeout=DEADLINE)
        assert server.returncode == status or server.returncode in (status if isinstance(status, tuple) else ())
        assert "EMULATED" in said and TOKEN not in said

"""How a bundle's server behaves: time beside the drawing, and many clients at once of which some go away or send nonsense.

    .venv/bin/python bench/serving.py results/demo/bundle/axbake

Prints the time from a request to the answer's first byte, less the drawing, of which the PNG is shown apart; then, for 200
requests of 8 clients, what came back, whether each picture is the one that its seed has alone, and the server's memory before and
after. At the end the server is killed (-9), started again as systemd would, and asked for one picture more.
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CLIENTS, REQUESTS = 8, 200
SEEDS = 12  # different pictures
KINDS = {"plain": 110, "web_ui": 30, "hang_up": 30, "hostile": 30}  # requests
HOSTILE = (
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n",
    b"POST /api/draw HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /api/draw HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
    b"POST /sdapi/v1/img2img HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n"
    + b'{"init_images": ["gASVAAAAAAAAAA=="]}   ',
)


class Server:
    """`serve.py` of a bundle, started again when it ends, as systemd's Restart=always does."""

    def __init__(self, bundle: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [
            sys.executable,
            str(bundle / "serve.py"),
            "--port",
            str(self.port),
            "--threads",
            "1",
            "--queue",
            "16",
        ]
        self._closed = False
        self.process = self._start()
        threading.Thread(target=self._restart, daemon=True).start()

    def _start(self) -> subprocess.Popen:
        return subprocess.Popen(self._command, stderr=subprocess.DEVNULL)

    def _restart(self) -> None:
        while not self._closed:
            self.process.wait()
            if not self._closed:
                time.sleep(2)
                self.process = self._start()

    def close(self) -> None:
        self._closed = True
        self.process.terminate()
        self.process.wait()

    def wait(self) -> float:
        """Seconds until it can draw."""
        started = time.perf_counter()
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask("GET", "/health")[0] == 200:
                    return time.perf_counter() - started
            time.sleep(0.05)

    def ask(self, method: str, address: str, content: dict | None = None) -> tuple[int, dict, float]:
        """Status, content, and seconds to the first byte of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = None if content is None else json.dumps(content)
        started = time.perf_counter()
        connection.request(method, address, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        seconds = time.perf_counter() - started
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if text else {}, seconds

    @property
    def memory(self) -> float:
        """MiB that the process has in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def order(seed: int, steps: int) -> dict:
    """What OpenAI's interface is asked."""
    return {"prompt": "a face", "seed": seed, "steps": steps}


def picture(server: Server, seed: int, steps: int) -> bytes:
    """The picture of *seed* alone."""
    while True:
        status, content, _ = server.ask("POST", "/v1/images/generations", order(seed, steps))
        if status == 200:
            return base64.b64decode(content["data"][0]["b64_json"])
        assert status == 429, (status, content)
        time.sleep(0.05)


def beside(server: Server, steps: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each request that are not the drawing's, and those of them that are the PNG's."""
    found, png = [], []
    for seed in range(20):
        _, content, seconds = server.ask("POST", "/v1/images/generations", order(seed, steps))
        (timings,) = content["axbake"]["timings"]
        found.append(1000 * (seconds - timings["total_seconds"]))
        png.append(1000 * timings["png_seconds"])
    return found, png


def one(server: Server, kind: str, seed: int, steps: int, wanted: dict[int, bytes]) -> str:
    """What became of one request."""
    if kind == "plain":
        return "own picture" if picture(server, seed, steps) == wanted[seed] else "WRONG PICTURE"
    if kind == "web_ui":
        asked = {"prompt": "a face", "seed": seed, "steps": steps, "width": 512, "height": 512}
        while True:
            status, content, _ = server.ask("POST", "/sdapi/v1/txt2img", asked)
            if status == 200:
                break
            assert status == 429, (status, content)
            time.sleep(0.05)
        drawn = base64.b64decode(content["images"][0])
        return "own picture" if drawn == wanted[seed] else "WRONG PICTURE"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        if kind == "hang_up":
            body = json.dumps(order(seed, steps)).encode()
            head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body)
            time.sleep(random.uniform(0, 0.5))
            return "hung up"
        with contextlib.suppress(OSError):
            raw.sendall(HOSTILE[seed % len(HOSTILE)])
        answer = b""
        with contextlib.suppress(OSError):
            answer = raw.recv(1 << 16)
        return f"hostile: {answer[9:12].decode() or 'closed'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    bundle = parser.parse_args().bundle.resolve()
    os.environ["OMP_NUM_THREADS"] = "1"
    server = Server(bundle)
    try:
        print(f"from the start to the first picture: {server.wait():.1f} s")
        steps = server.ask("GET", "/api/state")[1]["models"][0]["steps"][0]
        times, png = beside(server, steps)
        print(f"beside the drawing, 20 requests: median {statistics.median(times):.1f} ms, largest {max(times):.1f} ms")
        print(f"of these, writing the PNG, which txt2img.py does too: median {statistics.median(png):.1f} ms")
        wanted = {seed: picture(server, seed, steps) for seed in range(SEEDS)}
        kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
        random.Random(0).shuffle(kinds)
        memory = [server.memory]
        before = server.process.pid
        started = time.perf_counter()
        for half in (kinds[: REQUESTS // 2], kinds[REQUESTS // 2 :]):
            with ThreadPoolExecutor(CLIENTS) as pool:
                asked = [pool.submit(one, server, kind, n % SEEDS, steps, wanted) for n, kind in enumerate(half)]
                said = Counter(future.result() for future in asked)
            memory.append(server.memory)
            print(f"{len(half)} requests of {CLIENTS} clients: {dict(sorted(said.items()))}")
        print(f"{time.perf_counter() - started:.0f} s; the same process: {server.process.pid == before}")
        print(f"memory: {', '.join(f'{one:.0f}' for one in memory)} MiB, before, after half, after all")
        state = server.ask("GET", "/api/state")[1]
        print(f"afterwards: {state['cards'][0]['what']}, {state['waiting']} wait")
        server.process.send_signal(signal.SIGKILL)
        time.sleep(0.5)
        print(f"killed (-9); draws again after {server.wait() + 0.5:.1f} s:", end=" ")
        print("own picture" if picture(server, 3, steps) == wanted[3] else "WRONG PICTURE")
    finally:
        server.close()


if __name__ == "__main__":
    main()

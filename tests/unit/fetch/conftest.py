"""Two hosts that play Civitai and Hugging Face, a user without tokens, and fetches that wait for nothing."""

from pathlib import Path

import pytest

from axbake.fetch import line, tokens
from axbake.fetch.sources import parse_source
from axbake.fetch.store import fetch
from axbake.fetch.web import Web
from tests.services.model_sites import Sites, model_sites

DOWNLOADS = Path("downloads")


@pytest.fixture(scope="session")
def hosts():
    with model_sites() as sites:
        yield sites


@pytest.fixture
def sites(hosts, tmp_path, monkeypatch) -> Sites:
    """Both hosts with nothing on them, and a user without tokens in an empty directory."""
    for shelf in (hosts.files, hosts.api, hosts.downloads, hosts.private, hosts.faults, hosts.log):
        shelf.clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIVITAI_ENDPOINT", hosts.site)
    monkeypatch.setenv("HF_ENDPOINT", hosts.site)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (*tokens.CIVITAI_VARIABLES, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return hosts


@pytest.fixture
def naps() -> list[float]:
    """Seconds that would have been waited."""
    return []


@pytest.fixture
def get(naps):
    """A function that fetches without waiting, for as long as it would."""

    def get(cell: str, pin: str = ""):
        return fetch(parse_source(cell), pin, DOWNLOADS, web=Web(sleep=naps.append))

    return get


@pytest.fixture
def left():
    """A function that tells which files there are among the downloads."""
    return lambda: sorted(path.name for path in DOWNLOADS.iterdir())


@pytest.fixture
def impatient(monkeypatch):
    """A site's slowness is judged after a third of a second, and not after twenty."""
    monkeypatch.setattr(line, "SPELL", 0.3)

"""A whole model repository of Hugging Face, as the diffusers folder that it is."""

import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import get_token, hf_hub_url

from axbake.cache.errors import writing
from axbake.cache.locks import lock
from axbake.fetch import answers
from axbake.fetch.download import download
from axbake.fetch.errors import FetchError
from axbake.fetch.hugging_face import ask
from axbake.fetch.offers import Offer
from axbake.fetch.sources import HubFolder
from axbake.fetch.tokens import HUB_HOWTO, checked, hub_endpoint
from axbake.fetch.web import Web

logger = logging.getLogger(__name__)
INDEXES = ("model_index.json", "modular_model_index.json")
#: Folders of networks, tokenizers and schedulers
PARTS = re.compile(r"(unet|transformer|vae|scheduler|text_conditioner|t5_tokenizer|(text_encoder|tokenizer)(_[23])?)")
TEXTS = re.compile(r"[\w.-]+\.(json|txt|model|jinja)")
WEIGHTS = re.compile(r"[\w.-]+\.safetensors(\.index\.json)?")
VARIANT = re.compile(r"\.(fp16|bf16|non_ema)\.|\.(fp16|bf16|non_ema)-\d")  # of files beside which the plain ones stand


class NoFolder(FetchError):
    """The repository is not a diffusers folder."""


def fetch_folder(source: HubFolder, directory: Path, *, web: Web | None = None) -> Path:
    """Download what axbake reads of a repository: networks in safetensors, their configs, tokenizers and scheduler.

    What is there already, whole, is not downloaded again; what broke off goes on.

    Args:
        directory: in which the folder is made, called as the repository.

    Returns:
        the folder.

    Raises:
        FetchError: what has arrived stays, and the folder has no index until all of it has.
    """
    web = web or Web()
    endpoint, secret = hub_endpoint(), get_token()
    token = checked(secret, "HF_TOKEN or the file of `hf auth login`", endpoint) if secret else None
    howto = f"{HUB_HOWTO}; if its author requires consent, agree at https://huggingface.co/{source.repository}"
    info = ask(web, source, endpoint, token, howto)
    digests = {
        answers.text(one.get("rfilename"), 400): answers.digest(answers.table(one.get("lfs")).get("sha256"))
        for one in answers.tables(info.get("siblings"))
    }
    files = wanted_files(digests)
    if not any(index in files for index in INDEXES):
        raise NoFolder(
            f"{source.text}: {source.repository} has no {' or '.join(INDEXES)}, so it is not a diffusers folder. Name one of its"
            f" files, hf://{source.repository}/FILE: {', '.join(_checkpoints(digests)[:12]) or 'there is no checkpoint'}."
        )
    commit = info.get("sha")
    revision = commit if isinstance(commit, str) and re.fullmatch("[0-9a-f]{40}", commit) else source.revision
    folder = directory / source.repository.replace("/", "--")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / ".lock", about=f"download of {source.repository}"):
            for number, name in enumerate(files, 1):
                path = folder / name
                noted = path.with_name(f".{path.name}.from")
                mark = f"{digests[name] or revision}\n"
                if path.is_file() and noted.is_file() and noted.read_text(encoding="utf-8") == mark:
                    continue
                path.parent.mkdir(exist_ok=True)
                logger.info("Fetching file %d of %d, %s", number, len(files), name)
                url = hf_hub_url(source.repository, name, revision=revision, endpoint=endpoint)
                part = path.with_name(f".{path.name}.part")
                download(web, Offer(url, name, digests[name], token, howto), part, sha256=digests[name], pin="")
                shutil.move(part, path)
                noted.write_text(mark, encoding="utf-8")
    return folder


def wanted_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that axbake reads: full precision if it is there, the indexes last."""
    found: dict[str, list[str]] = {}
    for name in names:
        part, _, file = name.rpartition("/")
        if PARTS.fullmatch(part) and (TEXTS.fullmatch(file) or WEIGHTS.fullmatch(file)):
            found.setdefault(part, []).append(file)
    chosen = []
    for part, files in sorted(found.items()):
        weights = [file for file in files if WEIGHTS.fullmatch(file)]
        plain = [file for file in weights if not VARIANT.search(file)] or weights
        chosen += [f"{part}/{file}" for file in sorted({*plain, *(set(files) - set(weights))})]
    return chosen + [index for index in INDEXES if index in set(names)]


def _checkpoints(names: Iterable[str]) -> list[str]:
    return [quote(name) for name in names if "/" not in name and name.endswith(".safetensors")]

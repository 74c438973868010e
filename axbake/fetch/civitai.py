"""Civitai by its public API (https://developer.civitai.com/site/reference/): which file a model, version or digest means.

Of a version's files, those are offered whose format the source asks for: safetensors, unless it says otherwise. A pinned digest
names its file; else an AIR's file number or a link's `size` and `fp` do; else it is the primary one, which the page's button
gives.
"""

import logging
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from axbake.fetch.errors import AccessRefused, NotBakeable, NotThere, WrongDigest
from axbake.fetch.offers import Offer
from axbake.fetch.sources import CivitaiSource
from axbake.fetch.tokens import CIVITAI_HOWTO, civitai_endpoint, civitai_token
from axbake.fetch.web import Web

logger = logging.getLogger(__name__)
FORMATS = {False: "SafeTensor", True: "PickleTensor"}  # by whether a pickle is wanted
MODELS = ("Model", "Pruned Model")  # types of files; others are VAEs, configs, training data
JSON_ERRORS = {"Content-Type": "application/json"}  # else it redirects to a page that asks for a login
LICENCE = ("allowNoCredit", "allowCommercialUse", "allowDerivatives", "allowDifferentLicense")


def civitai_offer(web: Web, source: CivitaiSource, pin: str) -> Offer:
    """The file that *source*, and *pin* if it is not empty, mean.

    Raises:
        FetchError
    """
    api = CivitaiApi(web)
    version = find_version(api, source, pin)
    _refuse(source, version)
    file = choose_file(source, version, pin)
    digest = str(file.get("hashes", {}).get("SHA256", "")).lower() or None
    model = api.ask(f"models/{version['modelId']}")
    about = _about(source, version, model, file)
    url = _at_endpoint(file.get("downloadUrl") or f"/api/download/models/{version['id']}")
    early = version.get("earlyAccessEndsAt")
    howto = (
        f"{CIVITAI_HOWTO}. Until {early} it is in early access, which is bought on its page" if early else CIVITAI_HOWTO
    )
    return Offer(url, str(file["name"]), digest, civitai_token(), howto, JSON_ERRORS, about)


class CivitaiApi:
    """The API, at the endpoint of the environment."""

    def __init__(self, web: Web):
        self.web, self.base, self.token = web, civitai_endpoint(), civitai_token()

    def ask(self, path: str) -> dict[str, Any]:
        """The answer to a GET below /api/v1/."""
        answer = self.web.json(f"{self.base}/api/v1/{path}", token=self.token, howto=CIVITAI_HOWTO)
        if not isinstance(answer, dict):
            raise NotThere(f"{self.base}/api/v1/{path}: an answer that is no JSON object")
        return answer


def find_version(api: CivitaiApi, source: CivitaiSource, pin: str) -> dict[str, Any]:
    """The API's description of the version that is meant: the one named, the one of *pin*, or the model's latest."""
    if source.version:
        found = api.ask(f"model-versions/{source.version}")
        if source.model and found.get("modelId") != source.model:
            raise NotThere(
                f"{source.text}: version {source.version} is of model {found.get('modelId')}. Correct one of them."
            )
        return found
    if pin:
        try:
            found = api.ask(f"model-versions/by-hash/{pin.upper()}")
        except NotThere:
            found = {}
        if found.get("modelId") == source.model:
            return found
    model = api.ask(f"models/{source.model}")
    versions = [version for version in model.get("modelVersions", []) if isinstance(version, dict)]
    if not versions:
        raise NotThere(f"{source.text}: a model without versions{_mode(model)}.")
    if pin:
        raise WrongDigest(
            f"{source.text}: the table says SHA-256 {pin}, and no version of this model has such a file now. Versions and their"
            f" SHA-256: {'; '.join(map(_digests, versions))}. Correct the column sha256, or give the path of a copy."
        )
    logger.info(
        "%s names no version; its latest is %s (%s)", source.text, versions[0].get("id"), versions[0].get("name")
    )
    return api.ask(f"model-versions/{versions[0]['id']}")


def _digests(version: dict[str, Any]) -> str:
    files = [str(file.get("hashes", {}).get("SHA256", "not told")).lower() for file in version.get("files", [])]
    return f"{version.get('name')} (@{version.get('id')}): {', '.join(files) or 'no files'}"


def _mode(model: dict[str, Any]) -> str:
    return f": Civitai has it as {model['mode']}" if model.get("mode") else ""


def _refuse(source: CivitaiSource, version: dict[str, Any]) -> None:
    """Raise if the site says that the version cannot be had or baked, before a byte of it is downloaded."""
    kind, base = str(version.get("model", {}).get("type", "Checkpoint")), str(version.get("baseModel", "Other"))
    if kind != "Checkpoint":
        raise NotBakeable(f"{source.text}: a {kind}; the column checkpoint takes a checkpoint")
    if not base.startswith(("SD 1", "SD 2", "Other")):
        raise NotBakeable(
            f"{source.text}: Civitai says that its base model is {base}. axbake bakes Stable Diffusion 1.x and 2.x. Nothing"
            " was downloaded. If Civitai is wrong, download the file yourself and give its path."
        )
    if version.get("usageControl", "Download") != "Download":
        raise AccessRefused(
            f"{source.text}: its author lets nobody download it (usageControl {version['usageControl']})"
        )
    if not version.get("files"):
        raise NotThere(f"{source.text}: version {version.get('id')} has no files{_mode(version.get('model', {}))}.")


def choose_file(source: CivitaiSource, version: dict[str, Any], pin: str) -> dict[str, Any]:
    """The one of a version's files that is meant.

    Raises:
        NotThere: none fits; lists them.
        WrongDigest: none has the pinned digest; lists theirs.
        NotBakeable: Civitai's scan found it dangerous.
    """
    files = [file for file in version["files"] if file.get("type") in MODELS]
    fitting = [file for file in files if _metadata(file).get("format") == FORMATS[source.pickled]]
    if source.file:
        fitting = [file for file in fitting if file.get("id") == source.file]
    elif not pin:
        wanted = dict(source.wanted)
        fitting = [file for file in fitting if wanted.items() <= _metadata(file, lower=True).items()]
    if pin and fitting:
        pinned = [file for file in fitting if _sha256(file).startswith(pin)]
        if not pinned and all(map(_sha256, fitting)):
            raise WrongDigest(
                f"{source.text}: the table says SHA-256 {pin}; there are {'; '.join(map(_line, files))}. The file was changed"
                " there, or another one is meant. Correct the column sha256, or give the path of a copy."
            )
        fitting = pinned or fitting
    if not fitting:
        hint = (
            ""
            if source.pickled
            else " A pickle is taken if the AIR ends in .ckpt, or the link says format=PickleTensor."
        )
        there = "; ".join(map(_line, version["files"]))
        raise NotThere(f"{source.text}: no {FORMATS[source.pickled]} file of that kind; there are {there}.{hint}")
    chosen = min(fitting, key=_preference)
    if "Danger" in (chosen.get("pickleScanResult"), chosen.get("virusScanResult")):
        raise NotBakeable(f"{source.text}: Civitai's own scan calls {chosen['name']} dangerous. Take another model.")
    if len(fitting) > 1:
        others = "; ".join(_line(file) for file in fitting if file is not chosen)
        logger.info("%s: taking %s; there are also %s", source.text, _line(chosen), others)
    return chosen


def _metadata(file: dict[str, Any], *, lower: bool = False) -> dict[str, str]:
    found = {name: str(value) for name, value in (file.get("metadata") or {}).items() if value is not None}
    if "format" not in found and "format" in file:
        found["format"] = str(file["format"])  # as older answers have it
    return {name: value.lower() for name, value in found.items()} if lower else found


def _sha256(file: dict[str, Any]) -> str:
    return str(file.get("hashes", {}).get("SHA256", "")).lower()


def _preference(file: dict[str, Any]) -> tuple:
    """The primary file first, then the smallest that loses nothing in a bake: pruned, fp16."""
    metadata = _metadata(file, lower=True)
    return not file.get("primary"), metadata.get("size") != "pruned", metadata.get("fp") != "fp16", file.get("id", 0)


def _line(file: dict[str, Any]) -> str:
    metadata = _metadata(file)
    words = [metadata.get(name, "") for name in ("format", "size", "fp")] + [f"{file.get('sizeKB', 0) / 1e6:.1f} GB"]
    digest = f", SHA-256 {_sha256(file)}" if _sha256(file) else ""
    return f"{file.get('name')} ({', '.join(filter(None, words))}{', primary' if file.get('primary') else ''}{digest})"


def _about(source: CivitaiSource, version: dict, model: dict, file: dict) -> dict[str, Any]:
    """What `source.json` says of the file."""
    page = {"modelVersionId": version["id"]}
    return {
        "site": "Civitai",
        "page": f"https://civitai.com/models/{version['modelId']}?{urlencode(page)}",
        "air": version.get("air"),
        "model": model.get("name"),
        "version": version.get("name"),
        "author": (model.get("creator") or {}).get("username"),
        "base_model": version.get("baseModel"),
        "trained_words": version.get("trainedWords") or [],
        "file": {name: value for name, value in _metadata(file).items() if name in ("format", "size", "fp")},
        "licence": {name: model[name] for name in LICENCE if name in model},
    }


def _at_endpoint(url: str) -> str:
    """The download link *url*, at the endpoint of the environment: the API names the host that it was asked under."""
    parts, base = urlsplit(url), urlsplit(civitai_endpoint())
    return urlunsplit((base.scheme, base.netloc, parts.path, parts.query, ""))

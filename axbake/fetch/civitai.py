"""Civitai by its public API (https://developer.civitai.com/site/reference/): which file a model, version or digest means.

Of a version's files, those are offered whose format the address asks for: safetensors, unless it says otherwise. A pinned digest
names its file; else an AIR's file number or a link's `size` and `fp` do; else it is the primary one, which the page's button
gives. Answers are read into values at once (`_version`, `_file`), since any field of theirs may be null or of another type.
"""

import logging
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from axbake.fetch import answers
from axbake.fetch.errors import AccessRefused, FetchError, NotBakeable, NotThere, WrongDigest
from axbake.fetch.offers import Offer
from axbake.fetch.sources import PICKLES, SAFETENSORS, CivitaiAddress, parse_source
from axbake.fetch.tokens import CIVITAI_HOWTO, civitai_endpoint, civitai_token
from axbake.fetch.web import Web

logger = logging.getLogger(__name__)
SAFE, PICKLED = "SafeTensor", "PickleTensor"  # formats
MODELS = ("model", "pruned model")  # types of files; others are VAEs, configs, training data
JSON_ERRORS = {"Content-Type": "application/json"}  # else it redirects to a page that asks for a login
LICENCE = ("allowNoCredit", "allowCommercialUse", "allowDerivatives", "allowDifferentLicense")
#: Base models at Civitai that families of axbake have; of Pony, V7 is another network (AuraFlow)
BAKED = re.compile(r"SD [123]|SDXL|Pony$|Illustrious|NoobAI|Flux\.1 |Flux\.2 Klein|ZImage|Lumina|Anima|Other")
MOST_LISTED = 12  # files or versions that an error lists


@dataclass(frozen=True)
class File:
    """A file of a version; a field that the answer does not have is empty or None."""

    id: int | None
    name: str
    kind: str  # Model, Pruned Model, VAE, …
    form: str  # SafeTensor, PickleTensor, or another; by the name's ending where it is not said
    size: str  # full, pruned
    fp: str  # fp16, fp32, …
    gigabytes: float | None
    sha256: str | None
    primary: bool
    dangerous: bool
    url: str

    def __str__(self) -> str:
        words = [self.form, self.size, self.fp, "" if self.gigabytes is None else f"{self.gigabytes:.1f} GB"]
        words += ["primary" if self.primary else "", f"SHA-256 {self.sha256}" if self.sha256 else ""]
        return f"{self.name or 'a file without a name'} ({', '.join(filter(None, words))})"


@dataclass(frozen=True)
class Version:
    """A version of a model."""

    id: int
    model: int | None
    name: str
    base: str  # base model: SD 1.5
    air: str
    kind: str  # of the model: Checkpoint
    mode: str  # Archived, TakenDown
    usage: str  # Download, or another where it cannot be downloaded
    early: str  # when its early access ends
    words: tuple[str, ...]  # that it was trained with
    files: tuple[File, ...]

    def digests(self) -> str:
        """Its name and its files' SHA-256, for people."""
        return f"{self.name} (@{self.id}): {', '.join(file.sha256 or 'not said' for file in self.files) or 'no files'}"


def civitai_offer(web: Web, address: CivitaiAddress, pin: str) -> Offer:
    """The file that *address*, and *pin* if it is not empty, mean.

    Raises:
        FetchError
    """
    api = CivitaiApi(web)
    version = find_version(api, address, pin)
    model = _model(api, version)
    _refuse(address, version, model)
    file = choose_file(address, version, pin)
    howto = CIVITAI_HOWTO
    if version.early:
        howto += f". It is in early access until {version.early}; you can buy access on its page"
    name = file.name or f"civitai-{version.id}"
    about = _about(version, model, file)
    return Offer(_download_link(version, file), name, file.sha256, civitai_token(), howto, JSON_ERRORS, about)


class CivitaiApi:
    """The API, at the endpoint of the environment."""

    def __init__(self, web: Web):
        self.web, self.base, self.token = web, civitai_endpoint(), civitai_token()

    def ask(self, path: str) -> dict[str, Any]:
        """The answer to a GET below /api/v1/."""
        answer = self.web.json(f"{self.base}/api/v1/{path}", token=self.token, howto=CIVITAI_HOWTO)
        if not isinstance(answer, dict):
            kind = "null" if answer is None else f"a {type(answer).__name__}"
            raise NotThere(f"{self.base}/api/v1/{path}: the answer is {kind}; wanted a JSON object")
        return answer


def _version(answer: dict[str, Any], number: int | None = None) -> Version | None:
    """The version that an *answer* describes; None if it does not say its number.

    Args:
        number: that was asked for.
    """
    found = answers.number(answer.get("id"))
    if (found if found is not None else number) is None:
        return None
    model = answers.table(answer.get("model"))
    return Version(
        id=found if found is not None else number or 0,
        model=answers.number(answer.get("modelId")),
        name=answers.text(answer.get("name")),
        base=answers.text(answer.get("baseModel")),
        air=answers.text(answer.get("air")),
        kind=answers.text(model.get("type")),
        mode=answers.text(model.get("mode")),
        usage=answers.text(answer.get("usageControl")),
        early=answers.text(answer.get("earlyAccessEndsAt"), 40),
        words=tuple(answers.texts(answer.get("trainedWords"))),
        files=tuple(map(_file, answers.tables(answer.get("files")))),
    )


def _file(answer: dict[str, Any]) -> File:
    metadata = answers.table(answer.get("metadata"))
    name = answers.file_name(answer.get("name"))
    said = answers.text(metadata.get("format")) or answers.text(answer.get("format"))  # as older answers have it
    known = {form.lower(): form for form in (SAFE, PICKLED)}
    ending = SAFE if name.lower().endswith(SAFETENSORS) else PICKLED if name.lower().endswith(PICKLES) else ""
    kilobytes = answer.get("sizeKB")
    sized = isinstance(kilobytes, int | float) and 0 <= kilobytes < 1e12
    url = answer.get("downloadUrl")
    return File(
        id=answers.number(answer.get("id")),
        name=name,
        kind=answers.text(answer.get("type")),
        form=known.get(said.lower()) or ending or said,
        size=answers.text(metadata.get("size")),
        fp=answers.text(metadata.get("fp")),
        gigabytes=float(kilobytes) / 1e6 if sized and kilobytes is not None else None,
        sha256=answers.digest(answers.table(answer.get("hashes")).get("SHA256")),
        primary=answer.get("primary") is True,
        dangerous="Danger" in (answer.get("pickleScanResult"), answer.get("virusScanResult")),
        url=url if isinstance(url, str) else "",
    )


def find_version(api: CivitaiApi, address: CivitaiAddress, pin: str) -> Version:
    """The version that is meant: the one named, the one of *pin*, or the model's latest."""
    if address.version is not None:
        return _asked_version(api, address, address.version)
    if pin:
        try:
            found = _version(api.ask(f"model-versions/by-hash/{pin.upper()}"))
        except NotThere:
            found = None
        if found and found.model == address.model:
            return found
    model = api.ask(f"models/{address.model}")
    versions = [version for entry in answers.tables(model.get("modelVersions")) if (version := _version(entry))]
    if not versions:
        raise NotThere(f"{address.text}: a model without versions{_mode(answers.text(model.get('mode')))}.")
    if pin:
        raise WrongDigest(
            f"{address.text}: the table says SHA-256 {pin}, but Civitai has no such file of this model. Versions and "
            f"their SHA-256: {_listed([version.digests() for version in versions])}. Correct the column sha256, or "
            "give the path of a copy."
        )
    logger.info("%s names no version; its latest is %s (%s)", address.text, versions[0].id, versions[0].name)
    return _asked_version(api, address, versions[0].id)


def _asked_version(api: CivitaiApi, address: CivitaiAddress, number: int) -> Version:
    found = _version(api.ask(f"model-versions/{number}"), number)
    assert found  # its number is known
    if found.id != number:
        raise NotThere(
            f"{address.text}: Civitai answered a request for version {number} with {found.id}. Try again later."
        )
    if address.model is not None and found.model not in (address.model, None):
        raise NotThere(f"{address.text}: version {number} is of model {found.model}. Correct one of them.")
    return found


def _model(api: CivitaiApi, version: Version) -> dict[str, Any]:
    """What the API says of the version's model: name, author, terms. Nothing, if that is gone while the version is there."""
    try:
        if version.model is None:
            raise NotThere(f"version {version.id} does not name its model")
        return api.ask(f"models/{version.model}")
    except FetchError as error:
        logger.warning("The model's page cannot be read, so its author and terms are unknown: %s", error)
        return {}


def _mode(mode: str) -> str:
    return f": Civitai marks it as {mode}" if mode else ""


def _listed(lines: list[str]) -> str:
    more = len(lines) - MOST_LISTED
    return "; ".join(lines[:MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _refuse(address: CivitaiAddress, version: Version, model: dict[str, Any]) -> None:
    """Raise if the site says that the version cannot be downloaded or baked, before a byte of it is downloaded."""
    kind = version.kind or answers.text(model.get("type"))
    if kind not in ("Checkpoint", ""):
        raise NotBakeable(f"{address.text}: a {kind}; the column checkpoint takes a checkpoint")
    if version.base and not BAKED.match(version.base):
        raise NotBakeable(
            f"{address.text}: Civitai says that its base model is {version.base}, which axbake does not bake"
            " (docs/families.md). Nothing was downloaded. If Civitai is wrong, download the file yourself and give its path."
        )
    if version.usage not in ("Download", ""):
        raise AccessRefused(f"{address.text}: its author does not allow downloads (usageControl {version.usage})")
    if not version.files:
        mode = version.mode or answers.text(model.get("mode"))
        raise NotThere(f"{address.text}: version {version.id} has no files{_mode(mode)}.")


def choose_file(address: CivitaiAddress, version: Version, pin: str) -> File:
    """The one of a version's files that is meant.

    Raises:
        NotThere: none fits; lists them.
        WrongDigest: none has the pinned digest; lists theirs.
        NotBakeable: Civitai's scan found it dangerous.
    """
    form, wanted = PICKLED if address.pickled else SAFE, dict(address.wanted)
    kinds = MODELS if wanted.get("type", "model") == "model" else (wanted["type"],)
    files = [file for file in version.files if file.kind.lower() in (*kinds, "")]
    fitting = [file for file in files if file.form in (form, "")]
    if address.file is not None:
        fitting = [file for file in fitting if file.id == address.file]
    elif not pin:
        # What a file does not say of itself does not speak against it.
        fitting = [
            file for file in fitting if all(value in (wanted.get(name, value), "") for name, value in _told(file))
        ]
    if pin and fitting:
        pinned = [file for file in fitting if (file.sha256 or "").startswith(pin)]
        unknown = [file for file in fitting if not file.sha256]
        if not pinned and not unknown:
            raise WrongDigest(
                f"{address.text}: the table says SHA-256 {pin}; there are {_listed(list(map(str, files)))}. The file "
                "on the site has changed, or the table means another file. Correct the column sha256, or give the "
                "path of a copy."
            )
        fitting = pinned or unknown
    if not fitting:
        hint = (
            ""
            if address.pickled
            else " axbake takes a pickle if the AIR ends in .ckpt, or the link says format=PickleTensor."
        )
        there = _listed(list(map(str, version.files)))
        raise NotThere(f"{address.text}: no {form} file of that kind; found {there}.{hint}")
    chosen = min(fitting, key=lambda file: _preference(file, wanted))
    if chosen.dangerous:
        raise NotBakeable(f"{address.text}: Civitai's own scan calls {chosen.name} dangerous. Take another model.")
    if len(fitting) > 1:
        others = _listed([str(file) for file in fitting if file is not chosen])
        logger.info("%s: taking %s; other files: %s", address.text, chosen, others)
    if other := [
        f"{name}={wanted[name]}" for name, value in _told(chosen) if value not in (wanted.get(name, value), "")
    ]:
        decides = "the column sha256" if address.file is None else "the file's number"
        logger.warning("%s: %s selects the file, but the file is not of %s", address.text, decides, ", ".join(other))
    return chosen


def _told(file: File) -> list[tuple[str, str]]:
    return [("size", file.size.lower()), ("fp", file.fp.lower())]


def _preference(file: File, wanted: dict[str, str]) -> tuple:
    """What says of itself that it is meant, then the primary file, then the smallest that loses nothing in a bake."""
    unsaid = not file.form, not file.kind, sum(name in wanted and not value for name, value in _told(file))
    return *unsaid, not file.primary, file.size.lower() != "pruned", file.fp.lower() != "fp16", file.id or 0


def _about(version: Version, model: dict[str, Any], file: File) -> dict[str, Any]:
    """What `source.json` says of the file."""
    page = f"https://civitai.com/models/{version.model}?{urlencode({'modelVersionId': version.id})}"
    if version.model is None:
        page = f"https://civitai.com/model-versions/{version.id}"
    return {
        "site": "Civitai",
        "page": page,
        "air": version.air if _means(version.air, version) else None,
        "model": answers.text(model.get("name")) or None,
        "version": version.name or None,
        "author": answers.text(answers.table(model.get("creator")).get("username")) or None,
        "base_model": version.base or None,
        "trained_words": list(version.words),
        "file": {"format": file.form, "size": file.size, "fp": file.fp},
        "licence": {name: answers.plain(model[name]) for name in LICENCE if name in model},
    }


def _means(air: str, version: Version) -> bool:
    """Whether *air*, which may become an address in the table, means *version* and nothing else."""
    try:
        found = parse_source(air)
    except FetchError:
        return False
    return isinstance(found, CivitaiAddress) and found.version == version.id and found.model == version.model


def _download_link(version: Version, file: File) -> str:
    """Where the API says that *file* is, at the endpoint of the environment: it names the host that it was asked under."""
    base = urlsplit(civitai_endpoint())
    told = {"type": file.kind, "format": file.form, "size": file.size, "fp": file.fp}
    path, query = (
        f"/api/download/models/{version.id}",
        urlencode({name: value for name, value in told.items() if value}),
    )
    try:
        parts = urlsplit(file.url)
    except ValueError:
        parts = urlsplit("")
    if parts.path.startswith("/"):
        path, query = parts.path, parts.query
    return urlunsplit((base.scheme, base.netloc, path, query, ""))

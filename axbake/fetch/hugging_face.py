"""Hugging Face by `huggingface_hub`: which commit, size and SHA-256 a file of a model repository has.

The bytes then come over `axbake.fetch.web` like all others, so that resuming, checking, space and tokens are one thing.
"""

import os
from typing import Any

import httpx2  # what huggingface_hub speaks HTTP with; its failures are not wrapped
from huggingface_hub import HfApi, ModelInfo, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from axbake.fetch.errors import AccessRefused, BadSource, FetchError, Interrupted, NotThere, SiteUnreachable
from axbake.fetch.offers import Offer
from axbake.fetch.sources import HubSource
from axbake.fetch.tokens import HUB_HOWTO, checked
from axbake.fetch.web import TIMEOUT, TRANSIENT, Patience, Web, describe, retry_after


def hub_endpoint() -> str:
    """Where Hugging Face is; the environment's HF_ENDPOINT names a mirror."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_offer(web: Web, source: HubSource) -> Offer:
    """The file that *source* means, at the commit that its revision is now.

    Raises:
        FetchError
    """
    endpoint, secret = hub_endpoint(), get_token()
    token = checked(secret, "HF_TOKEN or the file of `hf auth login`", endpoint) if secret else None
    info = _ask(web, source, endpoint, secret)
    file = next((file for file in info.siblings or [] if file.rfilename == source.file), None)
    if file is None:
        models = [one.rfilename for one in info.siblings or [] if one.rfilename.endswith((".safetensors", ".ckpt"))]
        raise NotThere(
            f"{source.text}: {source.repository} has no such file; checkpoints there: {', '.join(models[:12]) or 'none'}."
        )
    card: dict[str, Any] = info.card_data.to_dict() if info.card_data else {}
    about = {
        "site": "Hugging Face",
        "page": f"https://huggingface.co/{source.repository}/blob/{info.sha}/{source.file}",
        "repository": source.repository,
        "commit": info.sha,
        "author": info.author,
        "base_model": card.get("base_model"),
        "licence": {name: card[name] for name in ("license", "license_name", "license_link") if card.get(name)},
    }
    url = hf_hub_url(source.repository, source.file, revision=info.sha, endpoint=endpoint)
    digest = file.lfs.sha256.lower() if file.lfs else None
    return Offer(url, source.file.rpartition("/")[2], digest, token, _howto(source), about=about)


def _howto(source: HubSource) -> str:
    return f"{HUB_HOWTO}; if its author asks for consent, give it at https://huggingface.co/{source.repository}"


def _ask(web: Web, source: HubSource, endpoint: str, secret: str | None) -> ModelInfo:
    """The API's description of the repository at the source's revision."""
    patience = Patience(f"{endpoint}/{source.repository}", web.sleep)
    while True:
        try:
            api = HfApi(endpoint=endpoint, token=secret or False, library_name="axbake")
            return api.model_info(source.repository, revision=source.revision, files_metadata=True, timeout=TIMEOUT[1])
        except HFValidationError:
            raise BadSource(f"{source.text}: {source.repository!r} is no name of a repository") from None
        except OfflineModeIsEnabled:
            raise SiteUnreachable(f"{source.text}: HF_HUB_OFFLINE is set in the environment") from None
        except HfHubHTTPError as error:
            failure = _meaning(source, error, asked=secret is not None)
            if isinstance(failure, FetchError):
                raise failure from None
            patience.after(failure)
        except httpx2.HTTPError as error:
            patience.after(Interrupted(describe(error)))


def _meaning(source: HubSource, error: HfHubHTTPError, *, asked: bool) -> FetchError | Interrupted:
    status = error.response.status_code
    token = "the token that was sent is not enough" if asked else "no token was sent"
    if isinstance(error, GatedRepoError):
        return AccessRefused(f"{source.text}: HTTP {status}, a gated repository; {token}. {_howto(source)}.")
    if isinstance(error, RevisionNotFoundError):
        return NotThere(f"{source.text}: {source.repository} has no revision {source.revision}")
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return NotThere(
            f"{source.text}: HTTP {status}: no such repository, or a private one; {token}. {_howto(source)}."
        )
    if status in (401, 403):
        return AccessRefused(f"{source.text}: HTTP {status}; {token}. {_howto(source)}.")
    if status in TRANSIENT:
        return Interrupted(f"HTTP {status}", retry_after(error.response.headers.get("Retry-After")))
    return FetchError(f"{source.text}: HTTP {status}")

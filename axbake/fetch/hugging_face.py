"""Hugging Face's API: which commit and SHA-256 a file of a model repository has.

Asked over `axbake.fetch.web` like all others, so that resuming, checking, bounds and tokens are one thing;
`huggingface_hub` has the token, and knows how a repository is called and its files are addressed.
"""

import re
from typing import Any
from urllib.parse import quote

from huggingface_hub import get_token, hf_hub_url
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from axbake.fetch import answers
from axbake.fetch.errors import AccessRefused, BadSource, FetchError, NotThere, SiteUnreachable
from axbake.fetch.offers import Offer
from axbake.fetch.sources import PICKLES, SAFETENSORS, HubAddress, HubFolder
from axbake.fetch.tokens import HUB_HOWTO, checked, hub_endpoint
from axbake.fetch.web import Web


def hub_offer(web: Web, address: HubAddress) -> Offer:
    """The file that *address* means, at the commit that its revision is now.

    Raises:
        FetchError
    """
    endpoint, secret = hub_endpoint(), get_token()
    token = checked(secret, "HF_TOKEN or the file of `hf auth login`", endpoint) if secret else None
    howto = f"{HUB_HOWTO}; if its author requires consent, agree at https://huggingface.co/{address.repository}"
    info = ask(web, address, endpoint, token, howto)
    siblings = answers.tables(info.get("siblings"))
    file = next((file for file in siblings if file.get("rfilename") == address.file), None)
    if file is None:
        names = [answers.text(one.get("rfilename")) for one in siblings]
        models = [name for name in names if name.lower().endswith((*SAFETENSORS, *PICKLES))]
        raise NotThere(
            f"{address.text}: {address.repository} has no such file; checkpoints there: {', '.join(models[:12]) or 'none'}."
        )
    commit = info.get("sha")
    commit = commit if isinstance(commit, str) and re.fullmatch("[0-9a-f]{40}", commit) else None
    card = answers.table(info.get("cardData"))
    about = {
        "site": "Hugging Face",
        "page": f"https://huggingface.co/{address.repository}/blob/{quote(commit or address.revision or 'main', safe='')}"
        f"/{address.file}",
        "repository": address.repository,
        "commit": commit,
        "author": answers.text(info.get("author")) or None,
        "base_model": answers.plain(card.get("base_model")),
        "licence": {
            name: answers.plain(card[name]) for name in ("license", "license_name", "license_link") if card.get(name)
        },
    }
    url = hf_hub_url(address.repository, address.file, revision=commit or address.revision, endpoint=endpoint)
    digest = answers.digest(answers.table(file.get("lfs")).get("sha256"))
    return Offer(url, answers.file_name(address.file), digest, token, howto, about=about)


def ask(web: Web, address: HubAddress | HubFolder, endpoint: str, token: Any, howto: str) -> dict[str, Any]:
    """The API's description of the repository at the address's revision."""
    try:
        validate_repo_id(address.repository)
    except HFValidationError:
        raise BadSource(f"{address.text}: {address.repository!r} is not the name of a repository") from None
    if is_offline_mode():
        raise SiteUnreachable(f"{address.text}: HF_HUB_OFFLINE is set in the environment")
    sent = "the token has no access" if token else "no token was sent"

    def meaning(status: int, code: str) -> FetchError | None:
        if code == "GatedRepo":
            return AccessRefused(f"{address.text}: HTTP {status}, a gated repository; {sent}. {howto}.")
        if code == "RevisionNotFound":
            return NotThere(f"{address.text}: {address.repository} has no revision {address.revision}")
        if code == "RepoNotFound" or status == 404:
            return NotThere(f"{address.text}: HTTP {status}: no such repository, or a private one; {sent}. {howto}.")
        return None

    revision = f"/revision/{quote(address.revision, safe='')}" if address.revision else ""
    url = f"{endpoint}/api/models/{address.repository}{revision}?blobs=true"
    answer = web.json(url, token=token, howto=howto, meaning=meaning)
    if not isinstance(answer, dict):
        raise NotThere(f"{address.text}: the answer of {endpoint} is not a JSON object. Try again later.")
    return answer

"""HTTP as this package speaks it: tokens stay at their host, every hop of a redirect is looked at, failures say what to do."""

import http.cookiejar
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry

from axbake.fetch.errors import AccessRefused, FetchError, Interrupted, NotAFile, NotThere, SiteUnreachable
from axbake.fetch.tokens import Token, origin

logger = logging.getLogger(__name__)
ATTEMPTS = 6  # in a row without a byte more
LONGEST_WAIT = 900  # s that a site may ask for
TIMEOUT = (15, 60)  # s, to connect, and between two pieces
HOPS = 8
MOST_JSON = 32_000_000  # bytes of an answer of an API
TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
REDIRECTS = {301, 302, 303, 307, 308}


class Patience:
    """How long to go on after failures: back-off, what the site asks for, and an end."""

    def __init__(self, what: str, sleep: Callable[[float], None]):
        self.what, self.sleep, self.failures = what, sleep, 0

    def progressed(self) -> None:
        """Something came; earlier failures do not count any more."""
        self.failures = 0

    def after(self, failure: Interrupted) -> None:
        """Wait, or give up.

        Raises:
            SiteUnreachable: too many failures in a row, or the site wants a longer pause.
        """
        self.failures += 1
        wait = min(60.0, 2.0 ** (self.failures - 1)) if failure.wait is None else failure.wait
        if self.failures >= ATTEMPTS or wait > LONGEST_WAIT:
            why = f"{self.failures} times in a row" if wait <= LONGEST_WAIT else f"it asks for a pause of {wait:.0f} s"
            raise SiteUnreachable(
                f"{self.what}: {failure}; {why}. Run again later; what has been downloaded is kept."
            ) from None
        logger.info("%s: %s; again in %.0f s", self.what, failure, wait)
        self.sleep(wait)


class Web:
    """A session of requests.

    Args:
        sleep: waits so many seconds.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep):
        self.sleep = sleep
        self.session = requests.Session()
        self.session.headers["User-Agent"] = "axbake"
        self.session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))

    def open(
        self,
        url: str,
        *,
        token: Token | None,
        headers: dict[str, str],
        at_site: dict[str, str],
        howto: str,
        as_json: bool = False,
    ) -> requests.Response:
        """The answer to one GET, its body not read yet, after redirects; status 200, 206 or 416.

        The token goes to its own origin only, and never again once a redirect has left that.

        Args:
            at_site: further headers, which like the token go to no other origin.
            howto: what to do if the site refuses.
            as_json: whether the answer is to be JSON.

        Raises:
            Interrupted: another attempt may help.
            FetchError: none will.
        """
        where, start, mine = shown(url), origin(url), token
        for _ in range(HOPS):
            sent = {"Accept-Encoding": "identity", **headers}
            token = token if token and token.origin == origin(url) else None
            at_site = at_site if origin(url) == start else {}
            sent |= at_site
            if token:
                sent["Authorization"] = f"Bearer {token.secret}"
            answer = self._get(url, sent, where)
            if answer.status_code not in REDIRECTS:
                self._check(answer, where, howto, token=mine, as_json=as_json)
                return answer
            answer.close()
            url = self._next_hop(url, answer.headers.get("Location", ""), where, howto)
        raise SiteUnreachable(f"{where}: more than {HOPS} redirects")

    def _get(self, url: str, headers: dict[str, str], where: str) -> requests.Response:
        try:
            # `auth` as a function that does nothing: else requests adds what ~/.netrc has for whatever host.
            return self.session.get(
                url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False, auth=lambda request: request
            )
        except ValueError:  # InvalidURL and its like; requests also looks at where an answer redirects to
            raise SiteUnreachable(f"{where}: leads to an address that cannot be read") from None
        except requests.exceptions.SSLError:
            raise SiteUnreachable(f"{where}: the host's certificate is not trusted here") from None
        except (requests.RequestException, HTTPError, OSError) as error:
            raise Interrupted(describe(error)) from None  # texts of these exceptions hold whole addresses

    def _next_hop(self, url: str, location: str, where: str, howto: str) -> str:
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
            _ = parts.port
        except ValueError:
            raise SiteUnreachable(f"{where}: leads to an address that cannot be read") from None
        if not location or parts.scheme not in ("http", "https"):
            raise SiteUnreachable(f"{where}: redirects to nowhere")
        if urlsplit(url).scheme == "https" and parts.scheme == "http":
            raise SiteUnreachable(f"{where}: redirects to {shown(target)}, which is not encrypted")
        if parts.path.rstrip("/").endswith("/login"):
            raise AccessRefused(f"{where}: only for users who are logged in. {howto}.")
        return target

    def _check(self, answer: requests.Response, where: str, howto: str, *, token: Token | None, as_json: bool) -> None:
        """Raise what the status means, if it is no success."""
        status = answer.status_code
        if status in (200, 206, 416):
            if not as_json and answer.headers.get("Content-Type", "").startswith("text/html") and status != 416:
                answer.close()
                raise NotAFile(
                    f"{where}: gives a web page and not a file. Give the address of the file itself. {howto}."
                )
            if answer.headers.get("Content-Encoding", "identity") not in ("", "identity") and not as_json:
                answer.close()
                raise SiteUnreachable(
                    f"{where}: sends {answer.headers['Content-Encoding']}, though identity was asked for"
                )
            return
        said = self._words(answer, token)
        if status in TRANSIENT:
            raise Interrupted(f"HTTP {status}{said}", retry_after(answer.headers.get("Retry-After")))
        if status in (401, 403):
            sent = "the token that was sent is not enough" if token else "no token was sent"
            raise AccessRefused(f"{where}: HTTP {status}{said}; {sent}. {howto}.")
        if status in (404, 410):
            raise NotThere(f"{where}: HTTP {status}{said}; it is not there, or not for everybody. {howto}.")
        raise FetchError(f"{where}: HTTP {status}{said}, which no further attempt would change. {howto}.")

    def _words(self, answer: requests.Response, token: Token | None) -> str:
        """What an error's JSON says, as Civitai's and Hugging Face's have it; without what the site repeats of secrets."""
        try:
            said = answer.raw.read(4096, decode_content=True).decode("utf-8", "replace")
            content = json.loads(said.replace(token.secret, "…") if token else said)
        except (HTTPError, OSError, ValueError):
            return ""
        finally:
            answer.close()
        if not isinstance(content, dict):
            return ""
        texts = [" ".join(content[name].split()) for name in ("error", "message") if isinstance(content.get(name), str)]
        words = [re.sub(r"\?\S+", "?…", text)[:200] for text in texts]
        deadline = content.get("deadline")
        return f" ({': '.join(words)}{f', until {str(deadline)[:40]}' if deadline else ''})" if words else ""

    def json(self, url: str, *, token: Token | None, howto: str) -> Any:
        """JSON that *url* answers with.

        Raises:
            FetchError
        """
        patience = Patience(shown(url), self.sleep)
        while True:
            try:
                ask = {"Accept": "application/json", "Content-Type": "application/json"}
                answer = self.open(url, token=token, headers={}, at_site=ask, howto=howto, as_json=True)
                with answer:
                    return self._parsed(answer)
            except Interrupted as failure:
                patience.after(failure)

    def _parsed(self, answer: requests.Response) -> Any:
        try:
            return json.loads(answer.raw.read(MOST_JSON, decode_content=True))
        except ValueError:
            raise Interrupted("an answer that is no JSON") from None
        except (HTTPError, OSError) as error:
            raise Interrupted(describe(error)) from None


def shown(url: str) -> str:
    """*url* for people: without the query, in which sites put signatures and tokens."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def describe(error: BaseException) -> str:
    """What broke a connection, in words that hold no address."""
    text = f"{type(error).__name__} {error}"
    causes = {
        "NameResolution": "the host's name is unknown here",
        "refused": "the host refuses the connection",
        "ProxyError": "the proxy gives no connection",
        "Timeout": "no answer in time",
        "timed out": "no answer in time",
        "IncompleteRead": "the connection ended in the middle",
        "reset": "the connection was reset",
        "without response": "the connection ended without an answer",
    }
    return next((words for mark, words in causes.items() if mark in text), "the connection broke")


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for; it has them, or a date."""
    try:
        return Retry().parse_retry_after(value) if value else None
    except InvalidHeader:
        return None

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
from axbake.fetch.line import LeadsInside, Line, Way, names_inside
from axbake.fetch.tokens import Token, origin
from axbake.printable import one_line

logger = logging.getLogger(__name__)
ATTEMPTS = 6  # in a row without a byte more
LONGEST_WAIT = 900  # s that a site may ask for
TIMEOUT = (15, 60)  # s, to connect, and between two pieces
HOPS = 8
MOST_JSON = 16_000_000  # bytes of an answer of an API; 5 MB are of Civitai's largest models
MOST_WORDS = 16_384  # bytes that are read of an error's page
TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
REDIRECTS = {301, 302, 303, 307, 308}
Meaning = Callable[[int, str], FetchError | None]  # of a status, and of the site's own code for what is wrong


class Patience:
    """How long to go on after failures: back-off, what the site asks for, and an end."""

    def __init__(self, what: str, sleep: Callable[[float], None]):
        self.what, self.sleep = what, sleep
        self.attempts = self.failures = 0  # in a row; failures that took long count twice
        self.asked = self.pause = 0.0  # s that the site has asked for in a row; that the last pause took

    def progressed(self) -> None:
        """Something came; earlier failures do not count any more."""
        self.attempts = self.failures = 0
        self.asked = 0.0

    def after(self, failure: Interrupted) -> None:
        """Wait, or give up.

        Raises:
            SiteUnreachable: too many failures in a row, or the site wants a longer pause.
        """
        self.attempts += 1
        self.failures += 2 if failure.slow else 1
        self.pause = min(60.0, 2.0 ** (self.failures - 1)) if failure.wait is None else failure.wait
        self.asked += failure.wait or 0.0
        if self.failures >= ATTEMPTS or self.asked > LONGEST_WAIT:
            why = f"{self.attempts} times in a row"
            if self.asked > LONGEST_WAIT:
                why = f"it asks for {'a pause' if self.attempts == 1 else 'pauses'} of {self.asked:.0f} s"
            raise SiteUnreachable(f"{self.what}: {failure}; {why}. Run again later; downloaded data is kept.") from None
        logger.info("%s: %s; again in %.0f s", self.what, failure, self.pause)
        self.sleep(self.pause)


class _Session(requests.Session):
    def get_redirect_target(self, resp: Any) -> None:
        """None: hops are followed here, and requests would read a redirect's whole body, however long it is."""


def no_meaning(status: int, code: str) -> None:
    """Of no status a site's own meaning."""


class Web:
    """A session of requests.

    Args:
        sleep: waits so many seconds.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep):
        self.sleep, self.way = sleep, Way()
        self.session = _Session()
        self.session.headers["User-Agent"] = "axbake"
        self.session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        line = Line(self.way)
        self.session.mount("https://", line)
        self.session.mount("http://", line)
        # It warns of strange headers with a traceback and the whole address, signature included.
        logging.getLogger("urllib3").setLevel(logging.ERROR)

    def open(
        self,
        url: str,
        *,
        token: Token | None,
        headers: dict[str, str],
        at_site: dict[str, str],
        howto: str,
        as_json: bool = False,
        meaning: Meaning = no_meaning,
    ) -> requests.Response:
        """The answer to one GET, its body not read yet, after redirects; status 200, 206 or 416.

        The token goes to its own origin only, and never again once a redirect has left that. Redirects from the public internet
        to this machine or its networks are refused.

        Args:
            at_site: further headers, which like the token go to no other origin.
            howto: what to do if the site refuses.
            as_json: whether the answer is to be JSON.
            meaning: of an error's status and the header X-Error-Code, where the site gives them one.

        Raises:
            Interrupted: another attempt may help.
            FetchError: none will.
        """
        where, start, mine = shown(url), origin(url), token
        self.way.inside = None
        for _ in range(HOPS):
            sent = {"Accept-Encoding": "identity", **headers}
            token = token if token and token.origin == origin(url) else None
            at_site = at_site if origin(url) == start else {}
            sent |= at_site
            if token:
                sent["Authorization"] = f"Bearer {token.secret}"
            answer = self._get(url, sent, where)
            if self.way.inside is None:  # a proxy has made the connection
                self.way.inside = names_inside(start[1])
            if answer.status_code not in REDIRECTS:
                self._check(answer, where, howto, token=mine, as_json=as_json, meaning=meaning)
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
        except LeadsInside:
            raise _inside(where, url) from None
        except ValueError:  # InvalidURL and its like
            raise SiteUnreachable(f"{where}: redirects to an address that cannot be read") from None
        except requests.exceptions.SSLError:
            raise SiteUnreachable(f"{where}: this machine does not trust the host's certificate") from None
        except (requests.RequestException, HTTPError, OSError) as error:
            # Texts of these exceptions hold whole addresses.
            raise Interrupted(describe(error), slow=isinstance(error, requests.exceptions.ReadTimeout)) from None

    def _next_hop(self, url: str, location: str, where: str, howto: str) -> str:
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
            _ = parts.port
        except ValueError:
            raise SiteUnreachable(f"{where}: redirects to an address that cannot be read") from None
        if not location or parts.scheme not in ("http", "https") or not parts.hostname:
            raise SiteUnreachable(f"{where}: redirects without an address")
        if urlsplit(url).scheme == "https" and parts.scheme == "http":
            raise SiteUnreachable(f"{where}: redirects to {shown(target)}, which is not encrypted")
        if parts.path.rstrip("/").endswith("/login"):
            raise AccessRefused(f"{where}: only for users who are logged in. {howto}.")
        if not self.way.inside and names_inside(parts.hostname):
            raise _inside(where, target)
        return target

    def _check(
        self,
        answer: requests.Response,
        where: str,
        howto: str,
        *,
        token: Token | None,
        as_json: bool,
        meaning: Meaning,
    ) -> None:
        """Raise what the status means, if it is no success."""
        status = answer.status_code
        if status in (200, 206, 416):
            kind = answer.headers.get("Content-Type", "").lower()
            if not as_json and kind.startswith(("text/html", "application/xhtml")) and status != 416:
                answer.close()
                raise NotAFile(
                    f"{where}: returns a web page, not a file. Give the address of the file itself. {howto}."
                )
            encoding = answer.headers.get("Content-Encoding", "identity")
            if encoding not in ("", "identity") and not as_json:
                answer.close()
                raise SiteUnreachable(f"{where}: sends {one_line(encoding, 40)}, but axbake asked for identity")
            return
        said = self._words(answer, token)
        if known := meaning(status, answer.headers.get("X-Error-Code", "")):
            raise known
        if status in TRANSIENT:
            raise Interrupted(f"HTTP {status}{said}", retry_after(answer.headers.get("Retry-After")))
        if status in (401, 403):
            sent = "the token has no access" if token else "no token was sent"
            raise AccessRefused(f"{where}: HTTP {status}{said}; {sent}. {howto}.")
        if status in (404, 410):
            raise NotThere(f"{where}: HTTP {status}{said}; the file does not exist, or is not public. {howto}.")
        raise FetchError(f"{where}: HTTP {status}{said}; trying again would not help. {howto}.")

    def _words(self, answer: requests.Response, token: Token | None) -> str:
        """What an error's JSON or page says, without what the site repeats of secrets; empty if it says nothing."""
        try:
            said = read_most(answer, MOST_WORDS).decode("utf-8", "replace")
        except (HTTPError, OSError, Interrupted):
            return ""
        finally:
            answer.close()
        words = error_words(said.replace(token.secret, "…") if token else said)
        return f" ({words})" if words else ""

    def json(self, url: str, *, token: Token | None, howto: str, meaning: Meaning = no_meaning) -> Any:
        """JSON that *url* answers with.

        Raises:
            FetchError
        """
        patience = Patience(shown(url), self.sleep)
        ask = {"Accept": "application/json", "Content-Type": "application/json"}
        while True:
            try:
                answer = self.open(
                    url, token=token, headers={}, at_site=ask, howto=howto, as_json=True, meaning=meaning
                )
                with answer:
                    return self._parsed(answer, shown(url))
            except Interrupted as failure:
                patience.after(failure)

    def _parsed(self, answer: requests.Response, where: str) -> Any:
        try:
            content = read_most(answer, MOST_JSON + 1)
            if len(content) > MOST_JSON:
                raise FetchError(f"{where}: an answer of more than {MOST_JSON / 1e6:.0f} MB; wanted a description")
            return json.loads(content)
        except (ValueError, RecursionError):
            raise Interrupted("an answer that is not JSON") from None
        except (HTTPError, OSError) as error:
            raise Interrupted(describe(error)) from None


def read_most(answer: requests.Response, most: int) -> bytes:
    """The first *most* bytes of an answer's body, or all of it."""
    pieces: list[bytes] = []
    while most > 0 and (piece := answer.raw.read1(min(most, 1 << 16), decode_content=True)):
        pieces.append(piece[:most])
        most -= len(piece)
    return b"".join(pieces)


def error_words(page: str) -> str:
    """What the error *page* says, JSON or HTML, on one line; empty if it says nothing."""
    try:
        content = json.loads(page)
    except (ValueError, RecursionError):
        title = re.search(r"<title[^<>]{0,200}>([^<]{1,1000})", page, re.IGNORECASE)
        return one_line(title[1]) if title else ""
    texts = list(dict.fromkeys(_messages(content, 4)))[:3]
    words = ": ".join(re.sub(r"\?\S+", "?…", one_line(text)) for text in texts)
    deadline = content.get("deadline") if isinstance(content, dict) else None
    return words + (f", until {one_line(deadline, 40)}" if words and isinstance(deadline, str) else "")


def _messages(content: Any, depth: int) -> list[str]:
    """Texts of an error as APIs nest them: `{"error": {"message": …}}`, `{"errors": [{"detail": …}]}`."""
    if isinstance(content, str):
        return [content] if content.strip() else []
    if depth == 0:
        return []
    if isinstance(content, list):
        return [text for entry in content[:3] for text in _messages(entry, depth - 1)]
    if isinstance(content, dict):
        names = ("error", "errors", "message", "detail", "reason")
        return [text for name in names if name in content for text in _messages(content[name], depth - 1)]
    return []


def _inside(where: str, target: str) -> SiteUnreachable:
    return SiteUnreachable(
        f"{where}: redirects to {shown(target)}, which is inside this machine's own network, but the site is outside. "
        "If you want this, give that address itself."
    )


def shown(url: str) -> str:
    """*url* for people: without the query, in which sites put signatures and tokens."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return one_line(f"{parts.scheme}://{host}{port}{parts.path}", 500)


def describe(error: BaseException) -> str:
    """What broke a connection, in words that hold no address."""
    text = f"{type(error).__name__} {error}"
    causes = {
        "NameResolution": "the host's name cannot be resolved",
        "refused": "the host refuses the connection",
        "ProxyError": "the proxy does not connect",
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
    except (InvalidHeader, ValueError, OverflowError, TypeError):
        return None

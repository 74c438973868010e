"""Tokens reach their own site and nothing else; what is refused says why, and holds no secret."""

import json
from pathlib import Path

import pytest

from axbake.fetch.errors import AccessRefused, NotThere, SiteUnreachable
from tests.services.model_sites import HUB_TOKEN, SIGNATURE, TOKEN, Fault, weights

AIR = "urn:air:sd1:checkpoint:civitai:47274@102222"
HUB = "hf://someone/tiny/tiny.safetensors"
STORED = "/bucket/tiny.safetensors"
DOWNLOADS = Path("downloads")


def test_tokens_go_to_their_host_and_never_along_with_a_redirect(sites, get, monkeypatch, caplog):
    digest = sites.publish(weights())
    sites.publish_on_hub(weights())
    sites.private |= {"/api/download/models/102222", "/api/models/someone/tiny"}
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    caplog.set_level("DEBUG", "axbake")
    get(AIR, digest)
    get(HUB, digest[:10])
    (DOWNLOADS / f"{digest}.safetensors").unlink()
    get(HUB, digest)

    by_site = {seen.headers.get("authorization") for seen in sites.asked("site")}
    assert by_site == {f"Bearer {TOKEN}", f"Bearer {HUB_TOKEN}"}
    assert {seen.headers.get("authorization") for seen in sites.asked("site", "/api/v1/")} == {f"Bearer {TOKEN}"}
    assert {seen.headers.get("authorization") for seen in sites.asked("site", "/someone/")} == {f"Bearer {HUB_TOKEN}"}
    assert len(sites.asked("storage")) == 2
    for seen in sites.asked("storage"):
        assert "authorization" not in seen.headers
        assert TOKEN not in str(seen) and HUB_TOKEN not in str(seen)
    written = "".join(path.read_text(errors="replace") for path in Path().rglob("*.json"))
    for secret in (TOKEN, HUB_TOKEN, SIGNATURE):
        assert secret not in caplog.text + written


def test_a_token_is_for_its_origin_alone_also_when_another_address_redirects_there(sites, get, monkeypatch, tmp_path):
    digest = sites.put("tiny.safetensors", weights())
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    (tmp_path / "netrc").write_text(f"default login me password {TOKEN}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    get(sites.url(), digest)

    assert all("authorization" not in seen.headers for seen in sites.log)


def test_the_token_may_be_in_a_file_of_the_users(sites, get, tmp_path):
    sites.publish(weights())
    sites.private.add("/api/download/models/102222")
    (tmp_path / "config" / "axbake").mkdir(parents=True)
    (tmp_path / "config" / "axbake" / "civitai_token").write_text(f"{TOKEN}\n")

    get(AIR)

    assert sites.asked("site", "/api/download")[0].headers["authorization"] == f"Bearer {TOKEN}"
    (tmp_path / "config" / "axbake" / "civitai_token").write_text("two words")
    with pytest.raises(AccessRefused, match="civitai_token: no token") as caught:
        get(AIR)
    assert "two words" not in str(caught.value)


def test_a_login_that_is_lacking_is_an_error_that_says_where_a_token_is_had(sites, get):
    sites.publish(weights())
    sites.private.add("/api/download/models/102222")
    with pytest.raises(
        AccessRefused,
        match=r"no token was sent\. Create a token at https://civitai\.com/user/account.*CIVITAI_API_TOKEN",
    ):
        get(AIR)
    sites.private.clear()
    sites.fail("/api/download/models/102222", Fault(307, {"Location": "/login?reason=download-auth"}))
    with pytest.raises(AccessRefused, match="only for users who are logged in"):
        get(AIR)


def test_refusals_of_civitai_say_why(sites, get, monkeypatch):
    sites.publish(weights(), earlyAccessEndsAt="2099-01-01T00:00:00.000Z")
    monkeypatch.setenv("CIVITAI_TOKEN", TOKEN)
    body = json.dumps({"error": "Early Access", "deadline": "2099-01-01"}).encode()
    sites.fail("/api/download/models/102222", Fault(403, {"Content-Type": "application/json"}, body=body))
    with pytest.raises(
        AccessRefused, match=r"Early Access, until 2099-01-01.*the token has no access.*in early access"
    ):
        get(AIR)
    echo = json.dumps({"error": f"bad token {TOKEN} at https://x/?token={TOKEN}"}).encode()
    sites.fail("/api/download/models/102222", Fault(401, {"Content-Type": "application/json"}, body=echo))
    with pytest.raises(AccessRefused, match="bad token … at") as caught:
        get(AIR)
    assert TOKEN not in str(caught.value)
    with pytest.raises(NotThere, match=r"HTTP 404 \(Model not found"):
        get("urn:air:sd1:checkpoint:civitai:47274@5")
    with pytest.raises(NotThere, match="version 102222 is of model 47274"):
        get("urn:air:sd1:checkpoint:civitai:5@102222")


def test_redirects_that_lead_nowhere_are_told_without_their_secrets(sites, get):
    sites.put("tiny.safetensors", weights())
    for location, said in [
        (f"/bucket/tiny.safetensors?token={TOKEN}", "more than 8 redirects"),
        ("file:///etc/passwd", "redirects without an address"),
        ("", "redirects without an address"),
        ("http://[::1/x", "an address that cannot be read"),
        ("http://host:port/x", "an address that cannot be read"),
        (f"http://127.0.0.3:9/{'x'}?X-Amz-Signature={SIGNATURE}", "refuses the connection"),
    ]:
        sites.faults.clear()
        sites.fail(STORED, *[Fault(302, {"Location": location})] * 60)
        with pytest.raises(SiteUnreachable, match=said) as caught:
            get(sites.url())
        assert TOKEN not in str(caught.value) and SIGNATURE not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None  # nor in the traceback

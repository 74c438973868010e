"""A cell of the column checkpoint is a path, or an address that is read without asking anybody."""

import pytest

from axbake.fetch.errors import BadSource, Unpinned
from axbake.fetch.sources import CivitaiAddress, HubAddress, WebAddress, check_pin, parse_source

AIR = "urn:air:sd1:checkpoint:civitai:47274@102222"


@pytest.mark.parametrize(
    "cell",
    [
        "checkpoints/tiny.safetensors",
        "/data/a b.ckpt",
        "../x",
        "C:\\models\\x.safetensors",
        "air.safetensors",
        "urn/air",
    ],
)
def test_what_is_no_address_is_a_path(cell):
    assert parse_source(cell) is None


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        (AIR, (47274, 102222, None, False)),
        ("air:sd1:checkpoint:civitai:47274@102222", (47274, 102222, None, False)),
        ("urn:air:sd1:model:civitai:47274", (47274, None, None, False)),
        (f"{AIR}+81516", (47274, 102222, 81516, False)),
        (f"{AIR}.ckpt", (47274, 102222, None, True)),
        (f"{AIR}+81516.safetensor", (47274, 102222, 81516, False)),
        ("https://civitai.com/models/47274", (47274, None, None, False)),
        ("https://civitai.com/models/47274/xxmix9realistic", (47274, None, None, False)),
        ("https://civitai.com/models/47274/xxmix9realistic?modelVersionId=102222", (47274, 102222, None, False)),
        ("https://civitai.red/models/47274?modelVersionId=102222#comments", (47274, 102222, None, False)),
        ("https://www.civitai.com/api/download/models/102222", (None, 102222, None, False)),
        ("https://civitai.com/api/download/models/102222?type=Model&format=PickleTensor", (None, 102222, None, True)),
        ("https://civitai.com/api/download/models/102222?fileId=81516", (None, 102222, 81516, False)),
        ("https://civitai.com/model-versions/102222", (None, 102222, None, False)),
    ],
)
def test_addresses_of_civitai(cell, wanted):
    source = parse_source(cell)

    assert isinstance(source, CivitaiAddress)
    assert (source.model, source.version, source.file, source.pickled) == wanted
    assert source.text == cell


def test_a_download_link_of_civitai_says_which_file():
    source = parse_source("https://civitai.com/api/download/models/1?type=Model&format=SafeTensor&size=full&fp=fp32")

    assert dict(source.wanted) == {"type": "model", "size": "full", "fp": "fp32"}


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("hf://someone/tiny/tiny.safetensors", ("someone/tiny", "tiny.safetensors", None)),
        ("hf://someone/tiny/some/folder/tiny.ckpt@refs/pr/1", ("someone/tiny", "some/folder/tiny.ckpt", "refs/pr/1")),
        ("hf://someone/tiny@main/tiny.safetensors", ("someone/tiny", "tiny.safetensors", "main")),
        ("https://huggingface.co/someone/tiny/blob/main/a.safetensors", ("someone/tiny", "a.safetensors", "main")),
        (
            "https://huggingface.co/someone/tiny/resolve/v1/a/b.safetensors?download=true",
            ("someone/tiny", "a/b.safetensors", "v1"),
        ),
    ],
)
def test_addresses_of_hugging_face(cell, wanted):
    source = parse_source(cell)

    assert isinstance(source, HubAddress)
    assert (source.repository, source.file, source.revision) == wanted
    assert source.pickled == wanted[1].endswith(".ckpt")


def test_any_other_address_is_the_file_itself():
    source = parse_source("https://example.org:8443/a%20b.safetensors?version=2#x")

    assert isinstance(source, WebAddress)
    assert source.url == "https://example.org:8443/a%20b.safetensors?version=2"
    assert parse_source("https://example.org/x.CKPT").pickled


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("ftp://example.org/x.safetensors", "ftp:// is unknown"),
        ("https://", "without a host"),
        ("https://example.org", "no file, only a host"),
        ("https://[::1/x", "cannot be read"),
        ("https://civitai.com/user/someone", "not the page of a model"),
        ("https://civitai.com/models/xx", "not the page of a model"),
        ("https://civitai.com/models/1?modelVersionId=latest", "modelVersionId is not a number"),
        ("https://huggingface.co/someone/tiny", "not a file of a model repository"),
        ("hf://tiny.safetensors", "wanted hf://owner/repository/file"),
        ("hf://a/b@main/c@main", "wanted hf://owner/repository/file"),
        ("urn:air:sd1:lora:civitai:1@2", "a lora"),
        ("urn:air:sd1:checkpoint:huggingface:a/b", "of huggingface"),
        ("urn:air:sd1:checkpoint", "not an AIR"),
    ],
)
def test_an_address_of_no_known_form_is_refused(cell, said):
    with pytest.raises(BadSource, match="(?s)" + said.replace("[", r"\[")):
        parse_source(cell)


@pytest.mark.parametrize(
    "cell",
    [
        "https://civitai.com/api/download/models/1?token=s3cret",
        "https://example.org/x.safetensors?a=1&API_KEY=s3cret",
        "https://someone:s3cret@example.org/x.safetensors",
        "https://bucket.example.org/x.safetensors?X-Amz-Signature=s3cret&X-Amz-Date=1",
    ],
)
def test_a_secret_in_a_table_is_refused_without_being_repeated(cell):
    with pytest.raises(BadSource) as caught:
        parse_source(cell)

    assert "is a secret" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_source_without_a_digest_is_refused_unless_config_allows_it_and_plain_http_always():
    row = {"model": "tiny", "checkpoint": AIR, "sha256": ""}

    with pytest.raises(Unpinned, match=r"tiny: .*python -m axbake\.add --pin tiny.*fetch/allow_unpinned"):
        check_pin(row, allow_unpinned=False)
    with pytest.raises(Unpinned):
        check_pin(row | {"checkpoint": "http://example.org/x.safetensors"}, allow_unpinned=True)
    assert check_pin(row, allow_unpinned=True) == ""
    assert check_pin(row | {"sha256": "0123456789"}, allow_unpinned=False) == "0123456789"

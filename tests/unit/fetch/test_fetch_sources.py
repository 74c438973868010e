"""A cell of the column checkpoint is a path, or an address that is read without asking anybody."""

import ast
import graphlib
from pathlib import Path

import pytest

import axbake.fetch
from axbake.fetch.errors import BadSource, Unpinned
from axbake.fetch.sources import CivitaiAddress, HubAddress, WebAddress, check_pin, parse_source

AIR = "urn:air:sd1:checkpoint:civitai:47274@102222"


def test_no_module_of_the_room_imports_another_that_imports_it():
    files = {f"axbake.fetch.{path.stem}": path for path in Path(axbake.fetch.__file__).parent.glob("*.py")}
    imports = {}
    for name, path in files.items():
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))  # those in functions too
        froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        named = {node.module for node in froms} | {
            f"{node.module}.{each.name}" for node in froms for each in node.names
        }
        imports[name] = (named & set(files)) - {name}

    order = list(graphlib.TopologicalSorter(imports).static_order())  # raises CycleError

    assert len(order) == len(files) > 10


@pytest.mark.parametrize(
    "cell",
    [
        "checkpoints/tiny.safetensors",
        "/data/a b.ckpt",
        "../x",
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
        ("https://civitai.com/models/47274/xxmix9realistic/reviews", (47274, None, None, False)),
        ("https://civitai.com/api/v1/model-versions/102222", (None, 102222, None, False)),
        ("https://civitai.com/models/47274?modelversionid=102222", (47274, 102222, None, False)),
        ("https://civitai.com/models/47274?modelVersionId=102222&fileId=81516", (47274, 102222, 81516, False)),
        ("https://CIVITAI.com./models/47274", (47274, None, None, False)),
        ("URN:AIR:sd1:Checkpoint:civitai:47274@102222.CKPT", (47274, 102222, None, True)),
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
        (
            "https://huggingface.co/someone/tiny/blob/refs%2Fpr%2F1/a.safetensors",
            ("someone/tiny", "a.safetensors", "refs/pr/1"),
        ),
        (
            "https://huggingface.co/someone/tiny/resolve/refs%2fconvert%2fparquet/a/b%20c.safetensors",
            ("someone/tiny", "a/b c.safetensors", "refs/convert/parquet"),
        ),
        (
            "https://huggingface.co/someone/tiny/blob/refs/pr/1/a.safetensors",
            ("someone/tiny", "a.safetensors", "refs/pr/1"),
        ),
        (
            "https://huggingface.co/someone/tiny/blob/feature%2Fx%40y/a.safetensors",
            ("someone/tiny", "a.safetensors", "feature/x@y"),
        ),
        ("https://huggingface.co/someone/tiny/raw/main/a.safetensors", ("someone/tiny", "a.safetensors", "main")),
        ("hf://someone/tiny@refs%2Fpr%2F1/a.safetensors", ("someone/tiny", "a.safetensors", "refs/pr/1")),
        ("hf://someone/tiny@refs/pr/12/a.safetensors", ("someone/tiny", "a.safetensors", "refs/pr/12")),
        ("hf://someone/tiny/a.safetensors@refs%2Fpr%2F1", ("someone/tiny", "a.safetensors", "refs/pr/1")),
        ("HF://someone/tiny/a.safetensors?download=true", ("someone/tiny", "a.safetensors", None)),
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
    assert parse_source("https://example.org/get?id=1&name=x.ckpt").pickled
    assert parse_source("https://example.org/get?id=1#.ckpt").pickled
    assert not parse_source("https://example.org/get?id=1").pickled


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("ftp://example.org/x.safetensors", "ftp:// is unknown"),
        ("https://", "without a host"),
        ("https://example.org", "only a host, without a file"),
        ("https://[::1/x", "cannot be read"),
        ("https://civitai.com/user/someone", "not the page of a model"),
        ("https://civitai.com/models/xx", "not the page of a model"),
        ("https://civitai.com/models/1?modelVersionId=latest", "modelVersionId is not a number"),
        ("https://huggingface.co/someone/tiny/commits/main", "not a file of a model repository"),
        ("hf://tiny.safetensors", "wanted hf://owner/repository/file"),
        ("hf://a/b@main/c@main", "wanted hf://owner/repository/file"),
        ("urn:air:sd1:lora:civitai:1@2", "a lora"),
        ("urn:air:sd1:checkpoint:huggingface:a/b", "of huggingface"),
        ("urn:air:sd1:checkpoint", "not an AIR"),
        ("urn:air:sd1:checkpoint:civitai:1@2.gguf", "ends in .gguf; wanted .safetensors, or .ckpt"),
        (f"urn:air:sd1:checkpoint:civitai:1@{'9' * 5000}", "more than 18 digits"),
        ("urn:air:sd1:checkpoint:civitai:²@2", "axbake knows only civitai, with numbers"),
        (f"https://civitai.com/models/{'9' * 5000}", "not the page of a model"),
        ("https://civitai.com/models/1?modelVersionId=²", "modelVersionId is not a number"),
        ("https://civitai.com/api/download/models/1?fileId=x", "fileId is not a number"),
        ("https://civitai.com/api/download/models/1?type=VAE", "type=VAE; the column checkpoint takes a checkpoint"),
        ("https://civitai.com/api/download/models/1?format=GGUF", "format=GGUF; wanted SafeTensor or PickleTensor"),
        (
            "https://civitai.com/models/1?modelVersionId=2&modelVersionId=3",
            "modelVersionId appears twice, as '2' and '3'",
        ),
        ("hf://datasets/someone/x.safetensors", "of datasets; wanted a model repository"),
        ("hf://someone/tiny/../../x.safetensors", "is not the name of a file in a repository"),
        ("https://huggingface.co/someone/tiny/blob/main/%2e%2e/x.safetensors", "is not the name of a file"),
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
        "https://example.org/x.safetensors#access_token=s3cret",
        "https://example.org/x.safetensors?a=1;hf_token=s3cret",
        "https://storage.example.org/x?X-Goog-Signature=s3cret",
        "https://cdn.example.org/x?Expires=1&Signature=s3cret&Key-Pair-Id=K",
        "civitai.com/api/download/models/1?token=s3cret",
        "hf://someone/tiny/x.safetensors?token=s3cret",
    ],
)
def test_a_secret_in_a_table_is_refused_without_being_repeated(cell):
    with pytest.raises(BadSource) as caught:
        parse_source(cell)

    assert "is a secret" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_source_without_a_digest_is_refused_unless_config_allows_it_and_plain_http_always():
    row = {"model": "tiny", "checkpoint": AIR, "sha256": ""}

    with pytest.raises(Unpinned, match=r"tiny: .*axbake add --pin tiny.*fetch/allow_unpinned"):
        check_pin(row, allow_unpinned=False)
    with pytest.raises(Unpinned):
        check_pin(row | {"checkpoint": "http://example.org/x.safetensors"}, allow_unpinned=True)
    assert check_pin(row, allow_unpinned=True) == ""
    assert check_pin(row | {"sha256": "0123456789"}, allow_unpinned=False) == "0123456789"


@pytest.mark.parametrize(
    "cell",
    [
        "ftp://someone:s3cret@example.org/x.safetensors",
        "https:/example.org/x?token=s3cret",
        "example.org/x.safetensors?token=s3cret",
    ],
)
def test_an_address_that_is_refused_for_another_reason_is_quoted_without_its_secret(cell):
    with pytest.raises(BadSource) as caught:
        parse_source(cell)

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("around", ['"{}"', "'{}'", " {} ", "<{}>", "“{}”", "«{}»", "`{}`", '"{}', "\ufeff{}\u200b"])
@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        (AIR, 102222),
        ("https://civitai.com/models/47274?modelVersionId=102222", 102222),
        ("civitai.com/models/47274?modelVersionId=102222", 102222),
        ("www.civitai.com/models/47274?modelVersionId=102222", 102222),
        ("//civitai.com/models/47274?modelVersionId=102222", 102222),
        ("hf://someone/tiny/a.safetensors", None),
        ("huggingface.co/someone/tiny/blob/main/a.safetensors", None),
        ("hf.co/someone/tiny/resolve/main/a.safetensors", None),
    ],
)
def test_quotes_around_an_address_and_a_missing_https_are_understood(around, address, wanted):
    source = parse_source(around.format(address))

    assert source.text == address
    if wanted:
        assert (source.model, source.version) == (47274, wanted)
    else:
        assert (source.repository, source.file) == ("someone/tiny", "a.safetensors")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            "~/models/x.safetensors",
            r"~/ works in a shell, but not in a table. Write /home/me/models/x\.safetensors",
        ),
        ("$HOME/x.safetensors", r"\$HOME/ works in a shell"),
        ("${MODELS}/x.safetensors", r"\$\{MODELS\}/ works in a shell"),
        ("%USERPROFILE%\\x.safetensors", "%USERPROFILE%"),
        ('"checkpoints/x.safetensors"', "quotes around a path. Write it without: checkpoints/x.safetensors"),
        ("'/data/a b.ckpt'", "Write it without: /data/a b.ckpt"),
        ("file:///data/a%20b.ckpt", "a file:// address. Write the path: /data/a b.ckpt"),
        (
            "example.org/x.safetensors",
            "Write https://example.org/x.safetensors, or ./example.org/x.safetensors if it is a path",
        ),
        ("https:/civitai.com/models/1", "an address must begin with https://"),
        ("https//civitai.com/models/1", "an address must begin with https://"),
        ("http:\\\\civitai.com\\models\\1", "an address must begin with https://"),
        ("hf:someone/tiny/x.safetensors", "an address must begin with https:// or hf://"),
        ("civitai:47274@102222", "wanted urn:air:sd1:checkpoint:civitai:47274@102222"),
    ],
)
def test_what_only_a_shell_a_browser_or_a_person_understands_is_named_as_what_it_is(cell, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")

    with pytest.raises(BadSource, match=said):
        parse_source(cell)


@pytest.mark.parametrize(
    "name", ["~/x", "$HOME/x", '"x"', "civitai.com/models/47274", "example.org/x", "hf:x", "www.com/x"]
)
def test_a_file_that_is_there_is_a_path_whatever_it_is_called(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    (tmp_path / path.parent).mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("")

    assert parse_source(name) is None


def test_a_path_of_any_length_is_a_path():
    assert parse_source("x" * 100_000) is None
    assert parse_source("checkpoints/\0x") is None


@pytest.mark.parametrize(
    ("cell", "unused"),
    [
        ("https://civitai.com/models/1?modelVersionId=2&dialog=x&ref=y&ref=y", ("dialog", "ref")),
        ("https://civitai.com/api/download/models/1?modelVersionId=2", ("modelVersionId",)),
        ("https://civitai.com/models/1?size=", ("size",)),
        ("https://civitai.com/api/download/models/1?type=Model&format=SafeTensor&size=full&fp=fp16&fileId=3", ()),
        ("https://huggingface.co/a/b/resolve/main/c.safetensors?download=true&x=1", ("x",)),
        ("https://example.org/x?whatever=1", ()),
    ],
)
def test_parameters_that_change_nothing_are_known(cell, unused):
    assert parse_source(cell).unused == unused


def test_plain_http_is_plain_http_however_it_is_written():
    row = {"model": "tiny", "sha256": ""}

    for cell in ("HTTP://example.org/x.safetensors", '"http://example.org/x.safetensors"'):
        with pytest.raises(Unpinned):
            check_pin(row | {"checkpoint": cell}, allow_unpinned=True)

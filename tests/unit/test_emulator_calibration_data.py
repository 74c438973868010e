"""Calibration archives of every documented format, and what is wrong with others."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from axbake.emulator.calibration_data import CalibrationDataError, count_samples, samples, sources
from axbake.emulator.config import build_config
from axbake.emulator.graph import TensorSpec

X = TensorSpec("x", np.dtype(np.float32), (1, 3, 2, 2))
IDS = TensorSpec("ids", np.dtype(np.int64), (1, 4))


def npy(value, **saving):
    packed = io.BytesIO()
    np.save(packed, value, **saving)
    return packed.getvalue()


def archive(path: Path, members):
    """An archive of the kind that *path*'s suffix names."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as packed:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def entry(path, kind, name="DEFAULT", size=-1, **more):
    return {
        "tensor_name": name,
        "calibration_dataset": str(path),
        "calibration_format": kind,
        "calibration_size": size,
        **more,
    }


def read(entries, inputs, processors=()):
    values = {"input": "net.onnx", "output_dir": "out", "quant": {"input_configs": entries}}
    config = build_config(values | {"input_processors": list(processors)})
    return list(samples(sources(config, inputs)))


def dicts(count):
    generator = np.random.default_rng(0)
    return [
        {"x": generator.random(X.shape, np.float32), "ids": generator.integers(0, 9, IDS.shape)} for _ in range(count)
    ]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_pickled_dicts_are_read_from_every_kind_of_archive(tmp_path, suffix):
    wanted = dicts(3)
    path = archive(tmp_path / f"samples.{suffix}", {f"data/{i}.npy": npy(value) for i, value in enumerate(wanted)})
    found = read([entry(path, "NumpyObject")], (X, IDS))
    assert len(found) == 3
    for one, other in zip(wanted, found, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in ("x", "ids"))


@pytest.mark.parametrize(("size", "count"), [(-1, 5), (2, 2), (32, 5)])
def test_as_many_samples_as_asked_for_in_the_archives_order(tmp_path, size, count):
    values = dicts(5)
    path = archive(tmp_path / "samples.tar", {f"{9 - i}.npy": npy(value) for i, value in enumerate(values)})
    found = read([entry(path, "NumpyObject", size=size)], (X, IDS))
    assert len(found) == count and np.array_equal(found[0]["x"], values[0]["x"])
    settings = build_config(
        {"input": "n", "output_dir": "o", "quant": {"input_configs": [entry(path, "NumpyObject", size=size)]}}
    )
    assert count_samples(sources(settings, (X, IDS))) == count


def test_arrays_of_several_inputs_belong_together_by_file_name(tmp_path):
    values = dicts(3)
    xs = archive(tmp_path / "x.tar", {f"x/{i}.npy": npy(value["x"]) for i, value in enumerate(values)})
    ids = archive(tmp_path / "i.zip", {f"{i}.npy": npy(values[i]["ids"]) for i in (2, 0, 1)})
    found = read([entry(xs, "Numpy", "x"), entry(ids, "Numpy", "ids")], (X, IDS))
    assert all(np.array_equal(found[i]["ids"], values[i]["ids"]) for i in range(3))

    lone = archive(tmp_path / "lone.tar", {"0.npy": npy(values[0]["ids"])})
    with pytest.raises(CalibrationDataError, match=r"has no file with the name of x/1\.npy"):
        read([entry(xs, "Numpy", "x"), entry(lone, "Numpy", "ids")], (X, IDS))


def test_raw_files_are_little_endian(tmp_path):
    value = np.arange(12, dtype="<f4").reshape(X.shape)
    path = archive(tmp_path / "raw.tar", {"0.bin": value.tobytes()})
    assert np.array_equal(read([entry(path, "Binary")], (X,))[0]["x"], value)


@pytest.mark.parametrize(("order", "first"), [("RGB", 0), ("BGR", 2), ("AutoColorSpace", 2)])
def test_pictures_are_ordered_resized_and_normalised(tmp_path, order, first):
    picture = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 100, 50)).save(picture, "PNG")
    path = archive(tmp_path / "pictures.tar", {"a.png": picture.getvalue()})
    settings = entry(path, "Image", calibration_mean=[10.0, 20.0, 30.0], calibration_std=[2.0, 4.0, 5.0])
    found = read([settings], (X,), [{"tensor_name": "x", "tensor_format": order}])[0]["x"]
    assert found.shape == X.shape and found.dtype == np.float32
    assert np.allclose(found[0, 0], ((200, 100, 50)[first] - 10) / 2)


def test_a_grey_picture_has_one_channel(tmp_path):
    picture = io.BytesIO()
    Image.new("L", (2, 2), 80).save(picture, "PNG")
    path = archive(tmp_path / "pictures.zip", {"a.png": picture.getvalue()})
    grey = TensorSpec("x", np.dtype(np.float32), (1, 1, 2, 2))
    assert (read([entry(path, "Image")], (grey,), [{"tensor_name": "x", "tensor_format": "GRAY"}])[0]["x"] == 80).all()


class Bomb:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    header = npy(np.array({}, object), allow_pickle=True)
    start = header[: header.index(b"\n") + 1]
    for content in (npy(np.array({"x": Bomb()}, object)), start + pickle.dumps(Bomb(), 4)):
        path = archive(tmp_path / "bomb.tar", {"0.npy": content})
        with pytest.raises(CalibrationDataError, match=r"it refers to builtins\.print"):
            read([entry(path, "NumpyObject")], (X, IDS))
    assert capsys.readouterr().out == ""


def test_a_member_outside_the_archive_reaches_no_file(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with tarfile.open("hostile.tar", "w") as packed:
        content = npy(dicts(1)[0])
        member = tarfile.TarInfo("../outside.npy")
        member.size = len(content)
        packed.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.npy")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    assert len(read([entry("hostile.tar", "NumpyObject")], (X, IDS))) == 1
    assert not (tmp_path / "outside.npy").exists()


GOOD = dicts(1)[0]


@pytest.mark.parametrize(
    ("kind", "member", "content", "message"),
    [
        (
            "NumpyObject",
            "0.npy",
            npy(GOOD | {"x": GOOD["x"].astype(np.float64)}),
            "0.npy: x: found float64 [1, 3, 2, 2]",
        ),
        (
            "NumpyObject",
            "0.npy",
            npy(GOOD | {"x": GOOD["x"][0]}),
            "x: found float32 [3, 2, 2], wanted float32 [1, 3, 2, 2]",
        ),
        ("NumpyObject", "0.npy", npy({"x": GOOD["x"]}), "found inputs ['x'], wanted ['ids', 'x']"),
        ("NumpyObject", "0.npy", npy(GOOD | {"y": GOOD["x"]}), "found inputs ['ids', 'x', 'y']"),
        ("NumpyObject", "0.npy", npy(GOOD | {"x": 1.5}), "x: found a float, wanted an array"),
        ("NumpyObject", "0.npy", npy(GOOD | {"x": GOOD["x"] * np.nan}), "holds infinity or NaN"),
        ("NumpyObject", "0.npy", npy(np.array([1, 2], object)), "found object [2], wanted a pickled dict"),
        ("NumpyObject", "0.npy", npy(GOOD["x"]), "found float32 [1, 3, 2, 2], wanted a pickled dict"),
        ("NumpyObject", "0.npy", npy(GOOD)[:-40], "not loaded, since"),
        ("NumpyObject", "0.npy", b"nothing", "wanted a .npy file"),
        ("NumpyObject", "0.npy", npy(np.zeros(300_000)), "bytes, wanted at most"),
        ("NumpyObject", "readme.txt", b"", "found readme.txt, wanted .npy files only"),
        ("NumpyObject", ".hidden", b"", "found no files, wanted .npy"),
        ("Numpy", "0.npy", npy(GOOD["x"]), "archives hold one input each"),
    ],
)
def test_samples_that_do_not_fit_are_named(tmp_path, kind, member, content, message):
    path = archive(tmp_path / "samples.tar", {member: content})
    with pytest.raises(CalibrationDataError) as caught:
        read([entry(path, kind)], (X, IDS))
    assert message in str(caught.value) and "samples.tar" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "member", "content", "message"),
    [
        ("Numpy", "0.npy", npy(GOOD), "found pickled objects, wanted an array"),
        ("Numpy", "0.npy", npy(GOOD["x"])[:-8], "wanted a complete .npy file"),
        ("Binary", "0.bin", b"1234", "x: found 4 bytes, wanted 48"),
        ("Image", "0.png", b"no picture", "wanted a picture"),
    ],
)
def test_single_inputs_that_do_not_fit_are_named(tmp_path, kind, member, content, message):
    path = archive(tmp_path / "samples.zip", {member: content})
    with pytest.raises(CalibrationDataError) as caught:
        read([entry(path, kind)], (X,))
    assert message in str(caught.value)


def test_what_is_no_archive_is_refused(tmp_path):
    with pytest.raises(CalibrationDataError, match="no such file"):
        read([entry(tmp_path / "none.tar", "NumpyObject")], (X,))
    (tmp_path / "text.tar").write_text("text")
    with pytest.raises(CalibrationDataError, match=r"wanted a whole tar, tar\.gz or zip"):
        read([entry(tmp_path / "text.tar", "NumpyObject")], (X,))


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_an_archive_that_is_cut_short_is_named(tmp_path, suffix):
    path = archive(tmp_path / f"samples.{suffix}", {f"{i}.npy": npy(value) for i, value in enumerate(dicts(3))})
    content = path.read_bytes()
    path.write_bytes(content[: min(len(content) // 2, 1000)])
    with pytest.raises(CalibrationDataError, match="samples"):
        read([entry(path, "NumpyObject")], (X, IDS))

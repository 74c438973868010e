"""Pictures come back from a page as they went in, and what differs is reported in true numbers."""

import base64
import io

import numpy as np
from PIL import Image

from axbake.pages.gallery import THUMBNAIL, difference_maps, picture_uri, thumbnail_uri


def shown(uri):
    form, _, content = uri.removeprefix("data:image/").partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.format.lower() == form
    return np.asarray(image)


def noise(*shape):
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def test_a_picture_keeps_every_pixel():
    picture = noise(40, 24, 3)

    assert np.array_equal(shown(picture_uri(picture)), picture)


def test_a_small_picture_is_its_own_thumbnail_and_a_large_one_keeps_its_shape():
    assert np.array_equal(shown(thumbnail_uri(noise(64, 64, 3))), noise(64, 64, 3))
    assert shown(thumbnail_uri(noise(480, 240, 3))).shape == (THUMBNAIL, THUMBNAIL // 2, 3)


def test_differences_are_magnified_as_far_as_none_is_clipped():
    one = np.full((2, 2, 3), 100, np.uint8)
    other = one.copy()
    other[0, 1] = [100, 93, 102]

    gain, (said,) = difference_maps(one, [other])

    assert (gain, said["mean"], said["largest"]) == (32, 0.75, 7)
    assert shown(said["map"]).tolist() == [[0, 224], [0, 0]]


def test_all_maps_have_the_scale_of_the_largest_difference():
    one = np.full((1, 1, 3), 100, np.uint8)

    gain, maps = difference_maps(one, [one + np.uint8(1), one + np.uint8(60)])

    assert gain == 4
    assert [shown(said["map"]).item() for said in maps] == [4, 240]


def test_equal_pictures_have_a_black_map():
    _, (said,) = difference_maps(noise(8, 8, 3), [noise(8, 8, 3)])

    assert said["largest"] == said["mean"] == 0
    assert not shown(said["map"]).any()


def test_opposite_pictures_are_as_far_apart_as_can_be():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)

    gain, (said,) = difference_maps(black, [white])
    assert (gain, said["mean"], said["largest"]) == (1, 255, 255)

"""Keys depend on all that decides a result and on nothing else, and say in words how they differ."""

import dataclasses

import pytest

from axbake.cache import Entry, Key, explain
from axbake.cache.blobs import Blob

PROMPTS = ["a cat", "a dog", "a house by the sea", "a tree"]
KEY = Key(
    step="compile_model",
    component="unet",
    identity={
        "settings": {"height": 480, "toolchain": "emulator", "calibration_prompts": PROMPTS},
        "code": {"axbake.toolchain.pulsar2": "c0" * 32},
        "tools": {"torch": "2.12.0"},
    },
    inputs={"graph": "a" * 64, "config": "b" * 64},
    outputs={"axmodel": "unet.axmodel"},
)


def changed(key=KEY, *, inputs=None, tools=None, code=None, **settings):
    """*key* with some parts exchanged; None takes a setting away."""
    identity = {
        "settings": {name: value for name, value in (key.identity["settings"] | settings).items() if value is not None},
        "code": key.identity["code"] | (code or {}),
        "tools": key.identity["tools"] | (tools or {}),
    }
    return dataclasses.replace(key, identity=identity, inputs=key.inputs | (inputs or {}))


def entry(key, *, created="2025-01-01T00:00:00+00:00", content="d" * 64):
    outputs = {name: Blob(content, 1) for name in key.outputs}
    return Entry(key, outputs, seconds=1.0, peak_memory=1.0, created=created)


def test_the_order_of_names_does_not_change_a_key():
    turned = dataclasses.replace(
        KEY,
        identity={group: dict(reversed(values.items())) for group, values in reversed(KEY.identity.items())},
        inputs=dict(reversed(KEY.inputs.items())),
    )

    assert turned.digest == KEY.digest
    assert KEY.digest == dataclasses.replace(KEY).digest


def test_every_part_changes_a_key():
    keys = [
        KEY,
        dataclasses.replace(KEY, step="simulate"),
        dataclasses.replace(KEY, component="vae_decoder"),
        dataclasses.replace(KEY, component=None),
        dataclasses.replace(KEY, outputs={"axmodel": "other.axmodel"}),
        dataclasses.replace(KEY, inputs={"graph": "b" * 64, "config": "a" * 64}),
        changed(height=512),
        changed(height="480"),
        changed(toolchain=None),
        changed(calibration_prompts=PROMPTS[::-1]),
        changed(code={"axbake.toolchain.pulsar2": "c1" * 32}),
        changed(tools={"torch": "2.13.0"}),
        changed(inputs={"archive": "e" * 64}),
    ]

    assert len({key.digest for key in keys}) == len(keys)


AS_BEFORE = "graph, config, code, tools as before"
TURNED = [PROMPTS[1], PROMPTS[0], *PROMPTS[2:]]


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        (changed(height=512), f"unet: height: 480 → 512; {AS_BEFORE}"),
        (
            changed(height=512, toolchain="native"),
            f"unet: height: 480 → 512, toolchain: emulator → native; {AS_BEFORE}",
        ),
        (changed(toolchain=""), f'unet: toolchain: emulator → ""; {AS_BEFORE}'),
        (changed(steps=20), f"unet: steps is new; {AS_BEFORE}"),
        (changed(toolchain=None), f"unet: toolchain is gone; {AS_BEFORE}"),
        (
            changed(calibration_prompts=[*PROMPTS[:2], "a boat", PROMPTS[3]]),
            f"unet: calibration prompt 3 changed; {AS_BEFORE}",
        ),
        (
            changed(calibration_prompts=["x", "y", *PROMPTS[2:]]),
            f"unet: 2 of 4 calibration prompts changed; {AS_BEFORE}",
        ),
        (changed(calibration_prompts=[*PROMPTS, "x", "y"]), f"unet: 2 calibration prompts added; {AS_BEFORE}"),
        (changed(calibration_prompts=PROMPTS[1:]), f"unet: 1 calibration prompt removed; {AS_BEFORE}"),
        (
            changed(calibration_prompts=["x", *PROMPTS[2:]]),
            f"unet: 1 calibration prompt added, 2 calibration prompts removed; {AS_BEFORE}",
        ),
        (changed(calibration_prompts=TURNED), f"unet: calibration prompts in another order; {AS_BEFORE}"),
        (changed(inputs={"graph": "f" * 64}), "unet: input graph differs; config, settings, code, tools as before"),
        (
            changed(inputs={"archive": "f" * 64}),
            "unet: input archive is new; graph, config, settings, code, tools as before",
        ),
        (
            changed(code={"axbake.toolchain.pulsar2": "c1" * 32}),
            "unet: code of axbake.toolchain.pulsar2 changed; graph, config, settings, tools as before",
        ),
        (changed(tools={"torch": "2.13.0"}), "unet: torch 2.12.0 → 2.13.0; graph, config, settings, code as before"),
        (dataclasses.replace(KEY, component="vae_decoder"), "first build of compile_model/vae_decoder"),
        (dataclasses.replace(KEY, step="simulate", component=None), "first build of simulate"),
        (KEY, "unet: unchanged, but the stored result is missing or damaged"),
    ],
)
def test_a_build_says_what_is_new(new, sentence):
    assert explain(new, [entry(KEY)]) == sentence


def test_settings_within_settings_and_digests_are_named():
    old = changed(precision={"unet": "U16"}, version="1" * 64)
    new = changed(precision={"unet": "U8"}, version="2" * 64)

    assert explain(new, [entry(old)]) == f"unet: precision/unet: U16 → U8, version differs; {AS_BEFORE}"


def test_a_long_value_is_shortened():
    sentence = explain(changed(toolchain="x" * 500), [entry(KEY)])

    assert f"toolchain: emulator → {'x' * 59}…;" in sentence


def test_the_nearest_build_is_compared_and_of_equals_the_newest():
    far = entry(changed(height=64, toolchain="native"), created="2025-03-01T00:00:00+00:00")
    old = entry(changed(height=128), created="2025-01-01T00:00:00+00:00")
    newer = entry(changed(height=256), created="2025-02-01T00:00:00+00:00")

    for entries in ([far, old, newer], [newer, old, far]):
        assert explain(KEY, entries).startswith("unet: height: 256 → 480;")


def test_an_input_is_traced_to_what_made_it_differ():
    prompts = {"calibration_prompts": None, "prompts": PROMPTS}
    record = dataclasses.replace(changed(**prompts), step="record", outputs={"t": "t.npz"}, inputs={"unet": "7" * 64})
    other_prompt = changed(record, prompts=[*PROMPTS[:2], "a boat", PROMPTS[3]])
    pack = dataclasses.replace(changed(**prompts), step="pack", outputs={"a": "a.tar"}, inputs={"t": "2" * 64})
    pack_other = dataclasses.replace(pack, inputs={"t": "3" * 64})
    entries = [
        entry(record, content="2" * 64),
        entry(other_prompt, content="3" * 64),
        entry(pack, content="4" * 64),
        entry(pack_other, content="5" * 64),
        entry(changed(inputs={"archive": "4" * 64})),
    ]

    assert explain(changed(inputs={"archive": "5" * 64}), entries) == (
        "unet: prompt 3 changed; graph, config, settings, code, tools as before"
    )


def test_a_job_that_gives_what_it_was_given_does_not_explain_itself():
    check = dataclasses.replace(KEY, step="check", outputs={"graph": "unet.onnx"})
    entries = [
        entry(dataclasses.replace(check, inputs={"graph": content}), content=content)
        for content in ("1" * 64, "2" * 64)
    ]
    entries.append(entry(changed(inputs={"graph": "1" * 64})))

    sentence = explain(changed(inputs={"graph": "2" * 64}), entries)

    assert sentence == "unet: input graph differs; config, settings, code, tools as before"


def test_the_build_that_the_model_had_last_goes_before_a_nearer_one():
    own = entry(changed(height=256, toolchain="native"), created="2025-01-01T00:00:00+00:00")
    others = entry(changed(height=256), created="2025-03-01T00:00:00+00:00")

    assert explain(KEY, [own, others]).startswith("unet: height: 256 → 480;")
    assert explain(KEY, [own, others], last=own.created).startswith(
        "unet: height: 256 → 480, toolchain: native → emulator;"
    )
    assert explain(KEY, [own, others], last="2024-01-01T00:00:00+00:00") == explain(KEY, [own, others])

"""A run's steps have their bars where they ran."""

from axbake.jobs.record import JobRecord
from axbake.pages.timeline import WIDTH, timeline
from axbake.units import in_words


def step(seconds, ended, *, stored=False):
    """A step that ended at *ended*, a time of one day."""
    moment = f"2026-11-28T{ended}+00:00" if ended else None
    return JobRecord("step", None, stored, seconds, seconds, 0.1, "", {}, moment)


def test_bars_are_where_their_steps_ran_and_rows_in_the_order_of_their_beginnings():
    drawn = timeline(
        {"late": [step(30, "10:01:00.000", stored=True)], "early": [step(30, "10:00:30.000"), step(15, "10:00:45.000")]}
    )

    assert [name for name, _ in drawn.rows] == ["early", "late"]
    assert [[(bar.x, bar.width) for bar in bars] for _, bars in drawn.rows] == [[(0, 300), (300, 150)], [(300, 300)]]
    assert [bar.record.stored for _, bars in drawn.rows for bar in bars] == [False, False, True]
    assert drawn.ticks[0] == ("0", 0) and drawn.ticks[-1] == ("1 min", WIDTH)
    assert not drawn.pauses


def test_a_long_pause_is_left_out_and_named():
    drawn = timeline({"a": [step(50, "08:00:00.000")], "b": [step(40, "20:00:40.000")]})

    assert drawn.pauses == [(43200, 330)]
    assert [(bar.x, bar.width) for _, bars in drawn.rows for bar in bars] == [(0, 300), (360, 240)]


def test_a_step_that_took_no_time_is_seen_and_stays_inside():
    (_, (bar,)) = timeline({"a": [step(0, "08:00:00.000")]}).rows[0]
    assert bar.width > 0 and bar.x + bar.width <= WIDTH


def test_logs_of_earlier_versions_have_no_bars():
    assert timeline({"a": [step(1, None)], "b": []}) is None


def test_keys_become_words():
    assert in_words("vae_decoder") == "VAE decoder"
    assert in_words("onnx/unet") == "ONNX, UNet"

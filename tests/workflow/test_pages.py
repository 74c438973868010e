"""The pages in a real browser, offline: no error, nothing wider than a phone, light and dark, with and without JavaScript."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from axbake.families.sd1 import FAMILY
from axbake.pages.overview import write_overview
from axbake.pages.report import write_report
from tests.workflow.project import COMPONENTS, REPORT, ROW

PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
FIGURES = ("latent_psnr_db", "image_psnr_db", "image_ssim")  # of a drawing
HOSTILE = (
    '<script>document.title = "owned"</script><img src=x onerror="document.title = 1">"\'</style>&amp; {{ 7 * 7 }}'
)
# Least contrast of a text with the nearest background that is no picture, by WCAG 2.1
CONTRAST = """() => {
  const parts = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = (colour) => parts(colour).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const paper = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    return parts(colour)[3] === 0 ? paper(one.parentElement) : colour;
  };
  const written = [...document.body.querySelectorAll(":not(script, svg, svg *, option, select)")].filter((one) =>
    one.checkVisibility() && [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return Math.min(...written.map((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(paper(one))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
}"""


@pytest.fixture(scope="module")
def hostile(baked, tmp_path_factory) -> Path:
    """Pages of two models, one of which has a prompt that would be markup if it were not escaped."""
    results = tmp_path_factory.mktemp("pages") / "results"
    shutil.copytree(baked.directory / "results" / "tiny", results / "tiny")
    (results / "other" / "board").mkdir(parents=True)
    shutil.copy(results / "tiny/simulation/image.png", results / "other/board/image.png")
    facts = json.loads((results / "tiny" / "report.json").read_text())
    facts["family"], facts["model"], facts["distance"]["image_psnr_db"] = HOSTILE, "other", 9.5
    (results / "other" / "report.json").write_text(json.dumps(facts))
    assert write_overview(results, results / "report.html", table=["tiny", "other", HOSTILE]) == 2
    return results


@pytest.fixture
def show(browser):
    """A function that opens a page and returns it; every complaint of the browser fails the test at its end."""
    complaints, contexts = [], []

    def opened(path: Path, *, viewport=WIDE, **how):
        context = browser.new_context(viewport=viewport, offline=True, **how)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if is_foreign(request.url, path) else None)
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def is_foreign(url: str, path: Path) -> bool:
    return not url.startswith("data:") and url != path.as_uri()


def background(page) -> list[int]:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return [int(part) for part in re.findall(r"\d+", colour)[:3]]


@pytest.mark.parametrize("name", ["tiny/report.html", "report.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_phone_and_follows_light_and_dark(show, hostile, name, scheme):
    page = show(hostile / name, viewport=PHONE, color_scheme=scheme)

    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert (sum(background(page)) > 3 * 200) == (scheme == "light")
    assert page.locator(".ribbon").is_visible()
    assert page.locator(".ribbon").inner_text().startswith("EMULATED")


def test_every_picture_loads_and_every_emulated_one_says_so(show, hostile):
    page = show(hostile / "tiny/report.html")

    assert page.locator("img").count() >= 5
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    for name in ("Emulated:", "Difference of Emulated"):
        figure = page.locator("figure", has_text=name)
        assert figure.locator(".picture .emulated").inner_text() == "EMULATED"
    assert page.locator("figure", has_text="Reference:").locator(".emulated").count() == 0


def test_the_slider_uncovers_the_reference_and_the_choice_changes_the_other(show, hostile):
    page = show(hostile / "tiny/report.html")
    over = page.locator(".compare .over")

    page.locator(".compare input").fill("80")
    assert over.evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 0px 0px 80%)"

    assert page.locator(".compare .emulated").is_visible()
    page.locator(".compare select").select_option(label="Float ONNX")
    assert not page.locator(".compare .emulated").is_visible()
    shown = page.locator("figure", has_text="Float ONNX:").locator("img")
    assert over.get_attribute("src") == shown.get_attribute("src")


def test_tables_are_sorted_by_number_and_back(show, hostile):
    page = show(hostile / "report.html")
    names = page.locator(".models tbody td:first-child a")
    assert names.all_inner_texts() == ["other", "tiny"]

    head = page.locator(".models th", has_text="Picture, PSNR").locator("button")
    head.click()
    assert names.all_inner_texts() == ["other", "tiny"]
    head.click()
    assert names.all_inner_texts() == ["tiny", "other"]
    assert page.locator(".models th[aria-sort]").get_attribute("aria-sort") == "descending"


def test_contents_lead_to_their_parts_and_ids_are_unique(show, hostile):
    page = show(hostile / "tiny/report.html")

    targets = page.locator("nav a").evaluate_all("links => links.map(link => link.hash)")
    assert len(targets) >= 7
    assert all(page.locator(target).count() == 1 for target in targets)


def test_a_command_is_copied_or_selected(show, hostile):
    page = show(hostile / "tiny/report.html")
    wanted = ".venv/bin/snakemake --cores 4 results/tiny/bundle/axbake.tar"

    page.locator(".copy", has_text="axbake.tar").locator("button").click()

    assert page.evaluate("getSelection().toString()").strip() == wanted
    page.wait_for_function("[...document.querySelectorAll('.copy button')].some(one => one.textContent !== 'Copy')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["tiny/report.html", "report.html"])
def test_all_text_has_contrast(show, hostile, name, scheme):
    page = show(hostile / name, color_scheme=scheme)

    assert page.evaluate(CONTRAST) > 4.5  # https://www.w3.org/TR/WCAG21/#contrast-minimum


def test_a_table_that_is_wider_than_a_phone_says_so_at_its_edge(show, hostile):
    page = show(hostile / "tiny/report.html", viewport=PHONE)
    wide = page.locator(".scroll:has(table)").nth(1)

    assert wide.evaluate("box => box.scrollWidth > box.clientWidth")
    assert brightest_at_its_end(wide) < 230
    wide.evaluate("box => box.scrollLeft = box.scrollWidth")
    assert brightest_at_its_end(wide) > 240


def brightest_at_its_end(box) -> int:
    """Of 0 to 255, near the right edge of *box*, in its first rows, where the paper is white."""
    picture = np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("L"))
    return int(picture[2:20, -5].max())


def test_a_page_of_nothing_baked_says_what_to_do(show, tmp_path):
    assert write_overview(tmp_path, tmp_path / "report.html", table=["mine"]) == 0

    page = show(tmp_path / "report.html", viewport=PHONE)
    commands = page.locator(".command").all_inner_texts()
    assert "make demo" in commands and ".venv/bin/snakemake --cores 4 results/mine/report.html" in commands
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_without_javascript_all_but_slider_and_sorting_is_there(show, hostile):
    page = show(hostile / "tiny/report.html", java_script_enabled=False)

    assert not page.locator(".compare").is_visible()
    for said in (ROW["prompt"], "Where the error comes from", "versions", "tiny/bundle/axbake.tar"):
        assert page.get_by_text(said).first.is_visible()
    assert page.locator("figure img:visible").count() >= 3


def test_what_a_board_drew_stands_beside_the_rest(show, hostile):
    page = show(hostile / "report.html")

    assert page.locator("th", has_text="On the board").is_visible()
    assert page.locator("img[alt='Drawn on the board with other']").is_visible()
    assert page.locator("img[alt^='Drawn on the board']").count() == 1


def test_what_models_say_is_text_and_never_markup(show, hostile):
    page = show(hostile / "report.html")

    assert page.title().startswith("EMULATED, axbake")
    assert page.locator("tbody tr").first.locator("td").last.inner_text() == HOSTILE
    assert page.locator("table").nth(1).locator("td").first.inner_text() == HOSTILE


def wide_sums(results, place):
    """The residual sums of a model, one of them made wide."""
    said = json.loads((results / "calibration/unet.residuals.json").read_text())
    name, one = next(iter(said["sums"].items()))
    said["sums"][name] = one | {"high": 1e5, "peak_over_median": 1e4, "u16_db": 20.7}
    (place / "residuals.json").write_text(json.dumps(said | {"wide": [name]}))
    return place / "residuals.json"


def test_a_page_has_loras_advice_and_a_verdict_in_words_and_colour(baked, tmp_path, show, caplog):
    place, logs = baked.directory / "results/tiny", baked.directory / "logs/tiny"
    each = {"parities": "parity", "records": "build", "checks": "check"}
    wide = tmp_path / "activations.json"
    wide.write_text(json.dumps({"peak": 2 * 65504, "module": "decoder.mid_block"}))
    write_report(
        model="tiny",
        addresses=list(COMPONENTS),
        components=list(COMPONENTS),
        loras=[{"name": HOSTILE, "unet": 0.9, "text_encoder": 0.5}],
        advice=[f"column prompt: {HOSTILE} is not applied"],
        roles={one.name: one.role for one in FAMILY.components},
        limits={"good": {"psnr": 98, "ssim": 1}, "poor": {"psnr": 99, "ssim": 0}},
        checkpoint=place / "checkpoint.json",
        drawn=place / "reference/settings.json",
        activations=wide,
        reference=place / "reference/image.png",
        floating=place / "simulation/float.png",
        simulation=place / "simulation/image.png",
        comparison=[],
        distance=place / "simulation/distance.json",
        attribution=place / "simulation/attribution.json",
        calibration=place / "calibration/unet.json",
        residuals=wide_sums(place, tmp_path),
        held_out=place / "simulation/held_out.json",
        nodes=place / "simulation/nodes.json",
        preflight=place / "preflight.json",
        verdict=place / "verdict.json",
        **{name: [place / step / f"{part}.json" for part in COMPONENTS] for name, step in each.items()},
        logs=[str(logs / "reference.log")],
        page=tmp_path / "report.html",
        facts=tmp_path / "report.json",
    )

    page = show(tmp_path / "report.html")
    assert page.get_by_text("It keeps a median value of 1 of them to less than 40 dB.").is_visible()
    assert page.get_by_text("op_type: Add").is_visible() and page.get_by_role("cell", name="20.7 dB").is_visible()
    assert page.locator("dt", has_text="LoRA").inner_text() == f"LoRA {HOSTILE}"
    assert page.locator("dd", has_text="in the UNet").inner_text() == "× 0.9 in the UNet, × 0.5 in the text encoder"
    assert page.locator("#advice + ul li").inner_text() == f"Column prompt: {HOSTILE} is not applied."
    widest = "The largest activation in the VAE decoder is 131,008, in decoder.mid_block. Float16 ends at 65,504"
    assert page.get_by_text(widest).count() == 1 and page.get_by_text("2.0 times as fine").count() == 1
    assert page.locator(".said.verdict.poor b").inner_text() == "Poor"
    colours = [
        page.locator(place).evaluate("one => getComputedStyle(one).color")
        for place in (".verdict b", ".tile:last-child b")
    ]
    assert colours[0] != colours[1]
    assert page.get_by_text("Picture against reference: PSNR").is_visible()
    assert "POOR picture against reference: PSNR" in caplog.text and "Try: " in caplog.text


def test_the_first_samples_compared_draw_what_they_would_draw_if_they_calibrated_the_model(baked, project, show):
    """By the row's recipe, which the user brings."""
    graph = onnx.load(project.directory / "results/tiny/onnx/unet.onnx", load_external_data=False).graph
    narrow, floating = (next(node.name for node in graph.node if node.op_type == kind) for kind in ("Conv", "Sigmoid"))
    recipe = {"base": "U16", "layers": {"unet": {"U8": [narrow], "FP32": [floating]}}}
    (project.directory / "config/mine.yaml").write_text(json.dumps(recipe))
    project.edit("config/config.yaml", "denoiser: U16", "denoiser: config/mine.yaml")
    project.edit("config/config.yaml", "samples: 8", "samples: 4")
    project.edit("config/config.yaml", "selection: coverage", "selection: first")
    project.edit("config/config.yaml", "compare_first: 0", "compare_first: 4")
    project.bake(REPORT)

    built = json.loads((project.directory / "results/tiny/build/unet.json").read_text())
    named = {
        name: entry["data_type"]
        for entry in built["pulsar2_config"]["quant"]["layer_configs"]
        for name in entry.get("layer_names", [])
    }
    assert named == {narrow: "U8", floating: "FP32"}
    drawn = project.directory / "results/tiny/simulation"
    compared, distance = (json.loads((drawn / name).read_text()) for name in ("first.json", "distance.json"))
    calibrated = json.loads((project.directory / "results/tiny/calibration/unet.json").read_text())
    assert (drawn / "first.png").read_bytes() == (drawn / "image.png").read_bytes()
    assert compared["samples"] == 4 and compared["coverage"] == calibrated["coverage"]
    assert [compared[name] for name in FIGURES] == [distance[name] for name in FIGURES]

    page = show(project.directory / REPORT)
    figure = page.locator("#samples ~ .gallery figure", has_text="First 4 samples:")
    assert f"PSNR {compared['image_psnr_db']} dB, SSIM {compared['image_ssim']}" in figure.inner_text()
    assert figure.locator(".picture .emulated").inner_text() == "EMULATED"
    assert page.locator("a[href$='logs/tiny/comparison.log']").count() == 1
    assert show(baked.directory / REPORT).locator("#samples").count() == 0


def test_a_page_made_anew_shows_a_hostile_prompt_as_written_and_tells_what_came_from_the_cache(project, show):
    results = project.directory / "results/tiny"
    drawn = json.loads((results / "reference/settings.json").read_text()) | {"prompt": HOSTILE}
    (results / "reference/settings.json").write_text(json.dumps(drawn))
    for name in ("attribution.json", "float.png"):
        (results / "simulation" / name).unlink()

    project.bake(REPORT)

    page = show(project.directory / REPORT)
    assert page.title() == "tiny: EMULATED, axbake report"
    assert page.locator("dd", has_text="owned").inner_text() == HOSTILE
    said = json.loads((results / "report.json").read_text())
    stored = [job["step"] for job in said["jobs"] if job["stored"]]
    assert stored == ["simulate", "draw_parts", "attribute_error", "check_calibration", "compare_nodes"]
    assert said["times"]["stored"] == 5 and said["times"]["jobs"] == 40
    assert page.get_by_text("5 of 40 results came from the build cache").is_visible()

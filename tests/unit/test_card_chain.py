"""On a card: what goes between graphs stays in its memory, nothing is loaded twice that it can hold, what it cannot hold streams.

The card is a strict stand-in for AXCL's library, compiled from `tests/standins/axcl/axcl_rt.c`; its models run in ONNX Runtime.
"""

import ctypes
import itertools

import numpy as np
import pytest

from axbake.runtime import axcl, card_chain
from axbake.runtime.axcl import Port, open_card
from axbake.runtime.card_chain import CardSession, card_counts, open_component, place_tensors
from axbake.runtime.chain import Chain
from axbake.runtime.errors import BundleError
from axbake.runtime.session import open_model, open_models
from tests.standins.axcl.library import Standin, compile_library, write_ports
from tests.unit.test_runtime_chain import SHAPE, arrays, save_parts, save_whole

MIB = 1 << 20
BYTES = 4 * SHAPE[0] * SHAPE[1]  # of one of its tensors
FLOAT = np.dtype(np.float32)


@pytest.fixture(scope="module")
def standin(once):
    return Standin(once("axcl", lambda place: compile_library(place / "libaxcl_rt.so")) / "libaxcl_rt.so")


@pytest.fixture
def card(standin, monkeypatch):
    """A function that gives a card with so many bytes of memory, whose models run in ONNX Runtime or do nothing."""
    for module in (axcl, card_chain):
        monkeypatch.setattr(module, "find_library", lambda: str(standin.path))
    monkeypatch.setattr(axcl.atexit, "register", lambda *given: None)
    monkeypatch.setattr(axcl, "_cards", {})
    monkeypatch.setattr(card_chain, "_SESSIONS", {})

    def opened(memory, *, computing=True):
        standin.reset(memory, compute if computing else None)
        return open_card()

    return opened


def compute(path, inputs, outputs):
    """What the ONNX graph *path* gives for what stands at the addresses *inputs*."""
    session = open_model(path, threads=1)

    def at(address, shape, dtype):
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    given = {name: at(inputs[i], *port).copy() for i, (name, port) in enumerate(session.inputs.items())}
    for i, made in enumerate(session.run(given).values()):
        at(outputs[i], made.shape, made.dtype)[...] = made


def described(paths, usage=MIB, *, graphs=()):
    """*paths* of graphs, or of models compiled of *graphs*, with what each takes, gives and needs beside them."""
    for path, graph in zip(paths, graphs or paths, strict=True):
        session = open_model(graph)
        sides = [[(name, *port) for name, port in side.items()] for side in (session.inputs, session.outputs)]
        write_ports(path, usage, *([(name, shape, str(dtype)) for name, shape, dtype in side] for side in sides))
    return paths


def on_card(name, paths, card):
    return CardSession(name, paths, card, "AXCLRTExecutionProvider")


@pytest.mark.parametrize("cuts", [(2,), (2, 5), (1, 2, 3, 4, 5, 6)], ids=["one cut", "two cuts", "each node"])
def test_a_chain_on_a_card_gives_what_it_gives_on_the_host_and_copies_only_its_ends(cuts, card, standin, tmp_path):
    paths = described(save_parts(tmp_path / "unet", cuts))
    host = open_models(paths, threads=1)

    chain = on_card("unet", paths, card(64 * MIB))

    assert (chain.inputs, chain.outputs) == (host.inputs, host.outputs)
    before = standin.counts().allocations
    for run in range(3):
        assert np.array_equal(chain.run(arrays())["out_sample"], host.run(arrays())["out_sample"])
        found = standin.counts()
        assert found.loads == len(paths)  # once, however often it runs
        assert (found.uploaded, found.downloaded) == (2 * BYTES * (run + 1), BYTES * (run + 1))
        assert found.runs == len(paths) * (run + 1)
    assert before == 0 and found.allocations == len(chain._sizes)
    assert len(chain.seconds) == 3


def test_both_branches_of_guidance_run_through_each_graph_in_turn(card, standin, tmp_path):
    paths = described(save_parts(tmp_path / "unet", (2, 5)))
    host, chain = open_models(paths, threads=1), on_card("unet", paths, card(64 * MIB))
    feeds = [arrays(), {name: array + 1 for name, array in arrays().items()}]

    found = chain.run_all(feeds)

    for made, feed in zip(found, feeds, strict=True):
        assert np.array_equal(made["out_sample"], host.run(feed)["out_sample"])
    assert standin.counts().loads == 3 and standin.counts().runs == 6 and len(chain.seconds) == 2


def test_what_a_card_cannot_hold_streams_in_its_order_and_once_for_both_branches(card, standin, tmp_path):
    paths = described(save_parts(tmp_path / "unet", (1, 2, 3, 4, 5, 6)), usage=4 * MIB)  # seven graphs
    host, opened = open_models(paths, threads=1), card(21 * MIB)

    chain = on_card("unet", paths, opened)

    assert chain._resident == 3  # 3 stay, and two slots
    read = standin.counts().loads
    assert read == 7  # all once, to see what they take
    for run in range(1, 4):
        made = chain.run_all([arrays(), arrays()])
        assert np.array_equal(made[1]["out_sample"], host.run(arrays())["out_sample"])
        # The last two of a run stand in the slots when the next begins with the first that streams.
        assert standin.counts().loads == read + 4 * run
    assert standin.counts().peak <= 21 * MIB
    chain.leave()
    assert standin.counts().used == 0


def test_the_text_encoder_leaves_when_the_denoiser_needs_its_room_and_comes_back(card, standin, tmp_path):
    text = described([save_whole(tmp_path / "text.onnx")], usage=6 * MIB)
    parts = described(save_parts(tmp_path / "unet", (2, 5)), usage=4 * MIB)
    opened = card(14 * MIB)
    encoder = on_card("text_encoder", text, opened)
    wanted = encoder.run(arrays())["out_sample"]

    unet = on_card("unet", parts, opened)

    assert unet._resident == 3  # all of it: the text encoder's room counts
    for _ in range(4):
        assert np.array_equal(
            unet.run(arrays())["out_sample"], open_models(parts, threads=1).run(arrays())["out_sample"]
        )
    assert standin.counts().loads == 1 + 3 + 2 and encoder.held == 0  # two had to go again while others were looked at
    assert np.array_equal(encoder.run(arrays())["out_sample"], wanted)
    assert unet.held == 0 and standin.counts().peak <= 14 * MIB
    unet.run(arrays())
    for session in (encoder, unet):
        session.leave()
    assert standin.counts().used == 0


def test_a_component_that_is_opened_has_none_leave_that_waits_to_run(card, standin, tmp_path):
    opened = card(15 * MIB)
    encoder = on_card("text_encoder", described([save_whole(tmp_path / "text.onnx")], usage=6 * MIB), opened)

    unet = on_card("unet", described(save_parts(tmp_path / "unet", (2, 5)), usage=4 * MIB), opened)

    assert encoder.held == 6 * MIB and unet.held == 8 * MIB
    encoder.run(arrays())
    loads = standin.counts().loads
    unet.run(arrays())
    assert encoder.held == 0 and standin.counts().loads == loads + 1  # the one that had no room before


def test_what_a_card_did_is_counted_for_the_timings(card, tmp_path):
    paths = described(save_parts(tmp_path / "unet", (2, 5)))
    chain = on_card("unet", paths, card(64 * MIB))
    chain.run(arrays())

    found = card_counts(chain)

    assert found.pop("load_seconds") > 0
    assert found == {"loads": 3, "runs": 3, "uploaded": 2 * BYTES, "downloaded": BYTES}
    assert card_counts(open_models(paths)) == {}


def test_components_that_fit_beside_each_other_stay(card, standin, tmp_path):
    opened = card(64 * MIB)
    sessions = [
        on_card(name, described(save_parts(tmp_path / name, (2,)), usage=4 * MIB), opened) for name in ("a", "b", "c")
    ]

    for session in sessions * 3:
        session.run(arrays())

    assert standin.counts().loads == 6 and standin.counts().unloads == 0


def test_a_component_that_is_no_longer_there_needs_no_room(card, standin, tmp_path):
    opened = card(10 * MIB)
    one = on_card("a", described(save_parts(tmp_path / "a", (2,)), usage=4 * MIB), opened)
    one.run(arrays())
    one.leave()
    del one

    other = on_card("b", described(save_parts(tmp_path / "b", (2,)), usage=4 * MIB), opened)

    assert other.run(arrays()) and standin.counts().used < 10 * MIB


@pytest.mark.parametrize("seed", range(20))
def test_no_two_tensors_share_memory_while_both_are_needed(seed):
    """Random chains: each graph takes some of what was made before, and gives up to three tensors."""
    random = np.random.default_rng(seed)

    def port(name):
        return Port(name, (), FLOAT, int(random.integers(1, 9)))

    known, ports = [port("sample"), port("row")], []
    for number in range(8):
        taken = list(random.choice(len(known), size=min(3, len(known)), replace=False))
        given = [port(f"t{number}_{k}") for k in range(random.integers(1, 4))]
        ports.append(([known[k] for k in taken], given))
        known += given

    places, sizes = place_tensors(ports)

    inputs = {one.name for taken, _ in ports for one in taken} & {"sample", "row"}
    born = dict.fromkeys(inputs, -1) | {one.name: n for n, (_, given) in enumerate(ports) for one in given}
    dies = {one.name: n for n, (taken, _) in enumerate(ports) for one in taken}
    dies |= {one.name: len(ports) for one in ports[-1][1]}
    size = {one.name: one.size for one in known}
    assert places.keys() == born.keys()
    for one, other in itertools.combinations(places, 2):
        apart = dies.get(one, born[one]) < born[other] or dies.get(other, born[other]) < born[one]
        assert places[one] != places[other] or apart, (one, other)
    assert all(sizes[place] >= size[name] for name, place in places.items())


def test_a_long_chain_needs_two_pieces_of_memory_for_what_goes_through_it():
    ports = [([Port("t0", (), FLOAT, 9)], [Port("t1", (), FLOAT, 9)])]
    ports += [([Port(f"t{n}", (), FLOAT, 9)], [Port(f"t{n + 1}", (), FLOAT, 9)]) for n in range(1, 34)]

    places, sizes = place_tensors(ports)

    assert sizes == [9, 9] and [places[f"t{n}"] for n in range(4)] == [0, 1, 0, 1]


def test_errors_name_the_card_and_what_to_do(card, tmp_path, monkeypatch):
    paths = described(save_parts(tmp_path / "unet", (2, 5)), usage=8 * MIB)
    opened = card(12 * MIB)

    with pytest.raises(BundleError, match=r"unet: the card has 12 MiB .* two take up to 16 MiB\. Cut the component"):
        on_card("unet", paths, opened)
    with pytest.raises(BundleError, match="card 1: the driver finds 1 card; wanted a number below"):
        open_card(1)
    with pytest.raises(
        BundleError, match=r"nothing\.axmodel: axclrtEngineGetUsage of the card's driver gave the error 0x8"
    ):
        on_card("unet", [tmp_path / "nothing.axmodel"], opened)
    write_ports(paths[0], MIB, [("sample", (1, 2), "bfloat16")], [("skip", SHAPE, "float32")])
    with pytest.raises(BundleError, match="sample is of AXCL's type 14, which NumPy does not have; wanted one of int8"):
        on_card("unet", paths[:1], opened)


def test_graphs_that_do_not_fit_each_other_are_refused(card, tmp_path):
    paths = described(save_parts(tmp_path / "unet", (2, 5)))
    write_ports(paths[0], MIB, [("sample", SHAPE, "float32")], [("skip", (9, 9), "float32"), ("h0", SHAPE, "float32")])

    with pytest.raises(BundleError, match=r"unet: its graphs do not fit each other; skip: part_00\.onnx makes"):
        on_card("unet", paths, card(64 * MIB))


def test_a_compiled_component_of_a_bundle_goes_onto_the_card_and_others_do_not(card, standin, tmp_path, monkeypatch):
    card(64 * MIB)
    float_graphs = save_parts(tmp_path / "onnx", (2, 5))
    compiled = save_parts(tmp_path / "unet", (2, 5), suffix=".axmodel", producer_name="Pulsar2")
    described(compiled, graphs=float_graphs)

    for runtime in ("auto", "axcl"):
        assert isinstance(open_component(compiled, runtime=runtime, device=0, threads=1), CardSession)
    assert isinstance(open_component(float_graphs, runtime="auto", device=0, threads=1), Chain)
    assert standin.counts().uploaded == 0
    monkeypatch.setattr(card_chain, "find_library", lambda: None)
    with pytest.raises(BundleError, match=r"pyaxengine cannot be imported|not available|cannot load it"):
        open_component(compiled, runtime="axcl", device=0, threads=1)


# Z-Image's shape ------------------------------------------------------------------------------------------------------

HIDDEN = (1, 1152, 3840)  # 32 × 32 tokens of the picture at 512 × 512, and 128 of the text
ROW, LATENT, SAMPLED = (1, 256), (1, 16, 64, 64), (1, 1024, 64)
STEPS = 9
CALLS = 688  # of AXERA's published run of 9 steps, each of a graph loaded for it (RK3576, 16 GB card: 1368 of 1599 s are loading)


def z_image(folder):
    """34 graphs of AXERA's cut: two refiners, 30 blocks and the last layer, with what they need of a card's memory."""
    folder.mkdir()

    def graph(name, usage, inputs, outputs):
        path = folder / f"{name}.axmodel"
        path.write_bytes(b"")
        write_ports(path, usage, inputs, outputs)
        return path

    hidden = [(f"hidden_{n}", HIDDEN, "float32") for n in range(31)]
    row = ("adaln", ROW, "float32")
    texts = [("prompt_embeds", (1, 128, 2560), "float32"), ("text", (1, 128, 3840), "float32")]
    paths = [graph("cfg_01", 482 * MIB, texts[:1], texts[1:])]
    paths += [graph("cfg_02", 482 * MIB, [("sample", LATENT, "float32"), row, texts[1]], hidden[:1])]
    paths += [graph(f"cfg_{n + 3:02d}", 283 * MIB, [hidden[n], row], [hidden[n + 1]]) for n in range(30)]
    return [*paths, graph("auto_00", 87 * MIB, [hidden[30], row], [("out_sample", SAMPLED, "float32")])]


@pytest.mark.parametrize(("memory", "resident", "loads"), [(15232, 33, 33), (7040, 21, 33 + 9 * 12)])
def test_z_images_shape_is_loaded_once_where_it_fits_and_streams_in_part_where_not(
    memory, resident, loads, card, standin, tmp_path
):
    paths = z_image(tmp_path / "transformer")
    chain = on_card("transformer", paths, card(memory * MIB, computing=False))
    feed = {name: np.zeros(shape, dtype) for name, (shape, dtype) in chain.inputs.items()}
    for _ in range(STEPS):
        chain.run(feed)

    found = standin.counts()
    assert (len(paths), chain._resident, found.loads) == (33, resident, loads)
    assert found.runs == STEPS * 33 and found.peak <= memory * MIB
    ends = sum(array.nbytes for array in feed.values()), 4 * SAMPLED[1] * SAMPLED[2]
    assert (found.uploaded, found.downloaded) == (STEPS * ends[0], STEPS * ends[1])
    # A hidden state is 17.7 MB: copied in and out of each graph it would be 1.1 GB a step; here 1.8 MB go over the bus.
    assert (found.uploaded + found.downloaded) / STEPS < 2 * MIB < 2 * 31 * 4 * np.prod(HIDDEN) / 500
    assert found.loads < CALLS / 4

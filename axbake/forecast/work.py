"""What each step of a bake has to do, from what is known before anything runs: multiplications × runs, bytes, tensors."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from axbake.forecast.networks import Network
from axbake.networks.component import DECODER, DENOISER, ENCODER, TEXT

#: Amount by kind. `fixed`: seconds. Multiplications: `torch` and `bfloat16` in torch, `onnx` in ONNX Runtime, of a UNet or text
#: encoder; `pictures`: in either, of an autoencoder. `parameters`: of networks that are opened for that. `operators`: runs of
#: operators. `traced`: weights of a network that is exported. `bytes`: read and written. `fetched`: bytes from a network.
#: `vendor`: seconds that the real Pulsar2 takes by what is published of it.
Work = Mapping[str, float]

PICTURES, LATENTS = 37, 41  # of which the autoencoder's samples are chosen (`axbake.calibration.pictures`)
CHOSEN = 10  # of them, about
HELD_OUT = 8  # steps that run again, of each branch (`axbake.calibration.held_out`)
FIRST = 3  # steps that are drawn with float graphs alone (`axbake.drawing.attribution`)
MEASURED_THREADS = 2  # with which costs were measured; small networks take as long with one
MOST_THREADS = 4  # that a rule asks for
LARGE = 20e6  # parameters of a network that gains from threads; docs/numbers.md, «Threads of a small model»
SPREAD = ("torch", "bfloat16", "onnx", "pictures")  # kinds that are done by all threads
SLOWER = 1.8  # runs of a float graph that one run of its emulated model takes as long as
OPENED = 20  # runs of an operator that take as long as to make it ready
#: Seconds a parameter of Pulsar2's `llm_build`: 82 minutes are published of a Qwen2 of 1.54e9, one layer at a time; AXERA's page
#: tells 5 of Qwen3-0.6B on a server, eight at a time
LAYERS_SECONDS = 82 * 60 / 1.54e9
FETCHED = 2.1e9  # bytes of a checkpoint of which only the address is known


@dataclass(frozen=True)
class Bake:
    """What the times of a row's jobs depend on."""

    networks: Mapping[str, Network]  # by component
    steps: float  # of one drawing
    branches: float  # of guidance: 1 to 3
    prompts: float  # drawn for calibration
    samples: float  # that the denoiser is calibrated with
    first: float  # that it is calibrated with for comparison
    compared: float  # that compiled models are checked with
    texts: float  # that text encoders are calibrated with
    precision: str  # in which calibration is recorded
    emulated: bool  # whether the emulator compiles, and not Pulsar2
    threads: float = MEASURED_THREADS  # of a job
    tiles: float = 1  # that the decoder draws of one picture

    def of_role(self, *roles: str) -> list[Network]:
        """Its networks of *roles*."""
        return [network for network in self.networks.values() if network.role in roles]

    @property
    def runs(self) -> float:
        """Of the denoiser, in one drawing."""
        return self.steps * self.branches

    def calibrated(self, network: Network) -> float:
        """Samples that *network* is calibrated with."""
        return {TEXT: self.texts, DENOISER: self.samples, ENCODER: CHOSEN, DECODER: CHOSEN}[network.role]


def _fixed(seconds: float) -> Work:
    return {"fixed": seconds}


def _sum(*works: Work) -> Work:
    total: Counter[str] = Counter()
    for work in works:
        total.update(work)
    return total


def _runs(kind: str, network: Network, count: float) -> Work:
    kind = "pictures" if network.role in (ENCODER, DECODER) else kind
    return {kind: count * network.macs, "operators": count * network.tensors}


def _opened(*networks: Network) -> Work:
    """Networks as ONNX Runtime opens them; torch only loads their weights."""
    return {
        "parameters": sum(network.parameters for network in networks),
        "operators": OPENED * sum(network.tensors for network in networks),
    }


def _loaded(*networks: Network) -> Work:
    return {"bytes": sum(network.parameters for network in networks)}


def _imported(bake: Bake, network: Network) -> Work:
    return {"fixed": 0.1, "bytes": 4 * network.parameters}


def _exported(bake: Bake, network: Network) -> Work:
    return {"fixed": 7, "traced": network.tensors, "bytes": 6 * network.parameters}


def _compared(bake: Bake, network: Network) -> Work:
    return _sum(_fixed(0.3), _opened(network), _runs("torch", network, 1), _runs("onnx", network, 1))


def _compiled(bake: Bake, network: Network) -> Work:
    if not bake.emulated:
        from axbake.preflight.estimate import PUBLISHED  # here, since it reads graphs

        known = PUBLISHED[network.role]
        return {"vendor": known.seconds * network.macs / known.macs}
    written = {"bytes": 9 * network.parameters}  # the graph is copied for the compiler
    return _sum(_fixed(1), _opened(network), _runs("onnx", network, bake.calibrated(network)), written)


def _built_in_layers(bake: Bake, network: Network) -> Work:
    written = {"fixed": 3, "bytes": 5 * network.parameters}  # the folder, in half precision; the layers
    return written if bake.emulated else _sum(written, {"vendor": LAYERS_SECONDS * network.parameters})


def _checked(bake: Bake, network: Network) -> Work:
    runs = _runs("onnx", network, bake.compared * (1 + SLOWER))
    return _sum(_fixed(0.7), _opened(network, network), runs, {"bytes": 2 * network.parameters})


def _drawn(bake: Bake, kind: str, drawings: float = 1) -> Work:
    """Drawings of a latent, and the picture of each."""
    works = [_runs(kind, network, drawings * bake.runs) for network in bake.of_role(DENOISER)]
    works += [_runs(kind, network, drawings * bake.tiles) for network in bake.of_role(DECODER)]
    return _sum(*works, *(_runs(kind, network, drawings * min(bake.branches, 2)) for network in bake.of_role(TEXT)))


def _recorded_in(bake: Bake) -> str:
    return "bfloat16" if bake.precision == "bfloat16" else "torch"


def _recorded(bake: Bake) -> Work:
    kind = _recorded_in(bake)
    # And the empty prompt, at each step
    works = [_runs(kind, network, bake.prompts * bake.runs + bake.steps) for network in bake.of_role(DENOISER)]
    return _sum(_fixed(0.5), _loaded(*bake.of_role(DENOISER, TEXT)), *works)


def _observed(bake: Bake, count: float) -> Work:
    works = [_runs("onnx", network, count) for network in bake.of_role(DENOISER)]
    return _sum(_fixed(0.5), _opened(*bake.of_role(DENOISER)), *works)


def _calibrated(bake: Bake, network: Network) -> Work:
    """Samples chosen, and of a chain taken through all graphs but the last."""
    chosen = {"operators": bake.prompts * bake.runs * network.tensors / 10}
    share = 1 - 1 / network.graphs
    if not share:
        return chosen
    return _sum(chosen, {kind: share * amount for kind, amount in _observed(bake, bake.samples).items()})


def _all(bake: Bake) -> list[Network]:
    return list(bake.networks.values())


OF_NETWORK: dict[str, Callable[[Bake, Network], Work]] = {
    "import_component": _imported,
    "import_text_encoder": _imported,
    "import_denoiser": _imported,
    "export_onnx": _exported,
    "measure_parity": _compared,
    "compile_model": _compiled,
    "check_compiled": _checked,
    "quantise_weights": lambda bake, network: {"fixed": 1, "bytes": 6 * network.parameters},
    "check_quantised": _checked,
    "build_layers": _built_in_layers,
    "check_layers": _checked,
    "describe_chain": lambda bake, network: _fixed(0.1),
    "calibrate_text_encoder": lambda bake, network: _fixed(0.3),
    "calibrate_denoiser": _calibrated,
    "observe_denoiser": lambda bake, network: _observed(bake, bake.samples),
    # Runs forwards and backwards, as `axbake.quality.measuring` counts them.
    "measure_sensitivity": lambda bake, network: _sum(
        _fixed(8), _runs("torch", network, 6 * bake.runs + 7 * bake.branches * min(HELD_OUT, bake.steps))
    ),
    "compare_nodes": lambda bake, network: _sum(
        _fixed(3), _opened(network, network), _runs("onnx", network, 1 + SLOWER)
    ),
    # Three drawings or more, each by a build of its own.
    "find_recipe": lambda bake, network: _sum(
        _fixed(5), _drawn(bake, "onnx", 4 * SLOWER), *[_compiled(bake, network)] * 4
    ),
    "measure_residuals": lambda bake, network: _observed(bake, 2),
}
OF_MODEL: dict[str, Callable[[Bake], Work]] = {
    "fetch_checkpoint": lambda bake: {"fetched": FETCHED},
    "convert_checkpoint": lambda bake: {"fixed": 3, "bytes": 4 * sum(one.parameters for one in _all(bake))},
    "describe_checkpoint": lambda bake: _fixed(5),  # torch and diffusers are imported: by a job's first step
    "list_embeddings": lambda bake: _fixed(0.1),
    "write_single_file": lambda bake: {"fixed": 3, "bytes": 4 * sum(one.parameters for one in _all(bake))},
    "derive_schedule": lambda bake: _fixed(3.5),
    "record_trajectories": _recorded,
    "draw_reference": lambda bake: _sum(
        _fixed(5), _loaded(*bake.of_role(DENOISER, TEXT, DECODER)), _drawn(bake, "torch")
    ),
    "draw_pictures": lambda bake: {
        "fixed": 0.1,
        "pictures": PICTURES * sum(one.macs for one in bake.of_role(ENCODER)) / 1000,
    },
    "encode_pictures": lambda bake: _sum(
        _fixed(5), *(_runs("torch", network, PICTURES) for network in bake.of_role(ENCODER))
    ),
    "decode_latents": lambda bake: _sum(*(_runs("torch", network, LATENTS) for network in bake.of_role(DECODER))),
    "calibrate_encoder": lambda bake: _fixed(0.3),
    "calibrate_decoder": lambda bake: _fixed(0.1),
    "simulate": lambda bake: _sum(
        _fixed(6),
        _opened(*_all(bake)),
        _drawn(bake, "onnx", SLOWER),
        *(_runs("torch", one, 2) for one in bake.of_role(ENCODER)),
        # Tiles and the whole are compared, which takes about as long.
        *(_runs("torch", one, 2 * bake.tiles) for one in bake.of_role(DECODER) if bake.tiles > 1),
    ),
    # First steps with none compiled, and a drawing with each text encoder.
    "draw_parts": lambda bake: _sum(
        _fixed(0.5),
        *[_opened(*_all(bake))] * 2,
        _drawn(bake, "onnx", len(bake.of_role(TEXT))),
        *(_runs("onnx", one, min(FIRST, bake.steps) * bake.branches) for one in bake.of_role(DENOISER)),
        *(_runs("onnx", one, bake.tiles) for one in bake.of_role(DECODER)),
    ),
    "attribute_error": lambda bake: _sum(
        _fixed(0.5), *(_sum(_opened(one, one), _runs("onnx", one, 1 + SLOWER)) for one in bake.of_role(DECODER))
    ),
    "compare_calibration": lambda bake: _sum(
        _fixed(2), _opened(*_all(bake)), _observed(bake, bake.first), _drawn(bake, "onnx", SLOWER)
    ),
    "check_calibration": lambda bake: _sum(
        _fixed(0.5),
        _loaded(*bake.of_role(DENOISER)),
        *(_runs(_recorded_in(bake), one, min(HELD_OUT, bake.steps) * bake.branches) for one in bake.of_role(DENOISER)),
    ),
    "hold_parity": lambda bake: _fixed(0.1),
    "preflight": lambda bake: _fixed(0.5),
    "judge": lambda bake: _fixed(0.1),
    "write_report": lambda bake: _fixed(0.5),
    "refuse_row": lambda bake: _fixed(0.1),
    "write_bundle": lambda bake: {"fixed": 4, "bytes": 2 * sum(one.parameters for one in _all(bake))},
    "pack_bundle": lambda bake: {"fixed": 0.1, "bytes": 2 * sum(one.parameters for one in _all(bake))},
    "benchmark_host": lambda bake: _sum(_fixed(2), _opened(*_all(bake)), _drawn(bake, "onnx", 10 * SLOWER)),
    "deploy_bundle": lambda bake: {"fixed": 5, "fetched": sum(one.parameters for one in _all(bake))},
    "benchmark_board": lambda bake: _fixed(120),
    "serve_board": lambda bake: _fixed(60),
    "write_board_report": lambda bake: _fixed(1),
}


def threads_of(networks: Iterable[Network], cores: int) -> float:
    """Threads of a job that runs *networks* on so many *cores*, as rules ask for them."""
    large = any(network.parameters > LARGE for network in networks)
    return min(MOST_THREADS, cores) if large else MEASURED_THREADS


def is_step(name: str) -> bool:
    """Whether there is a step of that name."""
    return name in OF_MODEL or name in OF_NETWORK


def work_of(step: str, component: str | None, bake: Bake) -> Work:
    """What *step*, a function's name, has to do for *component*, or the graph at that address, of a row.

    Raises:
        KeyError: there is no such step, or component.
    """
    if step in OF_MODEL:
        work = OF_MODEL[step](bake)
    else:
        name, _, graph = (component or "").partition("/")
        network = bake.networks[name]
        work = OF_NETWORK[step](bake, network.graph if graph else network)
    share = MEASURED_THREADS / bake.threads
    return {kind: amount * share if kind in SPREAD else amount for kind, amount in work.items()}

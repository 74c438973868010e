"""Pulsar2's other knobs, emulated, on a denoiser: smooth quant, and percentile and MSE ranges, in 8 bits and in 16.

    python bench/knobs.py RESULTS

RESULTS is a model's directory of results that was baked to `unet.axmodel` and `onnx/text_encoder.onnx`, such as the demo's. Each
variant is built by the emulator from the model's own archive, and measured on a prompt that calibration has not seen, as
`bench/calibration.py` does it: SQNR of the UNet's output, and PSNR of the last latent.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere

from calibration import DEMO, HELD_OUT, HeldOut

from axbake.calibration.denoiser_samples import TakenInputs
from axbake.calibration.observation import chain_inputs
from axbake.emulator.build import build

QUANT = {
    "MinMax": {},
    "smooth quant": {"enable_smooth_quant": True},
    "Percentile": {"calibration_method": "Percentile"},
    "MSE": {"calibration_method": "MSE"},
    "MSE, smooth quant": {"calibration_method": "MSE", "enable_smooth_quant": True},
}
TYPES = {"U16": ("MinMax", "smooth quant", "Percentile"), "U8": tuple(QUANT)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("results", type=Path)
    results = arguments.parse_args().results
    taken = TakenInputs.of(chain_inputs([results / "onnx" / "unet.onnx"]))
    held_out = HeldOut(results, replace(DEMO, held_out=HELD_OUT[:1]), taken)
    config = json.loads((results / "build" / "unet.json").read_text(encoding="utf-8"))["pulsar2_config"]
    archive = str((results / "calibration" / "unet.tar").resolve())
    print("| activations | | SQNR of the output, dB | PSNR of the last latent, dB |\n|---|---|---:|---:|")
    for kind, names in TYPES.items():
        for name in names:
            entries = [entry | {"calibration_dataset": archive} for entry in config["quant"]["input_configs"]]
            layers = [{"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": kind}]
            quant = {**config["quant"], "input_configs": entries, "layer_configs": layers, **QUANT[name]}
            with tempfile.TemporaryDirectory() as place:
                settings = Path(place) / "config.json"
                settings.write_text(json.dumps({**config, "quant": quant}), encoding="utf-8")
                graph = str(results / "onnx" / "unet.onnx")
                build(settings, {"input": graph, "output_dir": place, "output_name": "unet.axmodel"})
                found = held_out.measure([Path(place) / "unet.axmodel"])
            print(f"| {kind} | {name} | {found[0]:.1f} | {found[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()

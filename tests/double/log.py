"""The log of a build, in the words and the order of Pulsar2's own (AXERA-TECH/pulsar2-docs-en, `quick_start_ax650.md`)."""

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

BAR = "━" * 40


def _say(text: str) -> None:
    print(text, flush=True)


def _record(where: str, text: str, level: str = "INFO") -> None:
    _say(f"{datetime.now():%Y-%m-%d %H:%M:%S.%f} | {level:8} | {where} - {text}")


def extracting(dataset: Path, place: Path) -> None:
    """The archive is unpacked."""
    _record("yamain.command.build:fill_default:300", "apply default output processor configuration", "WARNING")
    _record("yamain.common.util:extract_archive:181", f"extract [{dataset}] to [{place}]...")


def loaded(count: int) -> None:
    """Samples were found."""
    _say(f"{count} File(s) Loaded.")


def frontend(output: Path, datasets: dict[str, Path]) -> None:
    """The graph was optimised."""
    _say(f"Building onnx {BAR} 100% 0:00:00")
    _record("yamain.command.build:quant:797", f"save optimized onnx to [{output}/frontend/optimized.onnx]")
    _say("                               Quant Config Table")
    for name in datasets:
        _say(f"│ {name} │")
    _say("Transformer optimize level: 0")


def calibrating(count: int, after: Callable[[int], None]) -> None:
    """The bar of calibration, on stderr with carriage returns as tqdm draws it; *after* is called with each number done."""
    for name in ("AX Set Float Op Table", "AX Set MixPrecision", "AX Quantization Fusion", "AX Runtime Calibration"):
        _say(f"[{datetime.now():%H:%M:%S}] {name} Pass Running ...")
    for done in range(count + 1):
        percent = 100 * done // count
        bar = f"{'█' * (percent // 10):10}| {done}/{count} [00:{done % 60:02}<00:00,  9.10it/s]"
        sys.stderr.write(f"\rCalibration Progress(Phase 1): {percent:3}%|{bar}")
        sys.stderr.flush()
        after(done)
    sys.stderr.write("\n")


def quantised(output: Path) -> None:
    """The graph was quantised."""
    _say("--------- Network Snapshot ---------\nNum of Op:                    [100]")
    _say("Network Quantization Finished.\nquant.axmodel export success:")
    _say(f"    {output}/quant/quant_axmodel.onnx\n    {output}/quant/quant_axmodel.data")


def compiling(output: Path) -> None:
    """The NPU's program was made."""
    _say(f"Building native {BAR} 100% 0:00:00")
    _record("yamain.command.build:compile_ptq_model:1060", "group 0 QuantAxModel macs: 280,262,480")
    _record("yamain.command.build:compile_ptq_model:1132", "subgraph [0], group: 0, type: GraphType.NPU")
    _record("yasched.test_onepass:test_onepass_ir:3221", "schedule npu subgraph [0]")
    for step, count in (("tiling op", 68), ("build op serially", 103), ("build op", 188), ("add ddr swap", 497)):
        _say(f"{step}...   {BAR} {count}/{count} 0:00:00")
    for step in ("calc input dependencies", "assign eu heuristic", "assign eu onepass", "assign eu greedy"):
        _say(f"{step}...   {BAR} 921/921 0:00:00")
    _record("yasched.test_onepass:results2model:2542", "max_cycle = 450,154")
    _say(f"build jobs   {BAR} 921/921 0:00:00")
    _record("yamain.command.build:compile_ptq_model:1142", "fuse 1 subgraph(s)")

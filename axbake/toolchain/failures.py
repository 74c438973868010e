"""What builds are known to fail of, how each shows, and what to try next. `docs/pulsar2.md` has them as a table.

Marks are what Pulsar2, Docker and the kernel print: error codes as in `yamain.common.error.CodeException`, texts as people have
reported them for Pulsar2 3 to 7.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """One way to fail."""

    name: str
    mark: str  # regular expression, searched in each line
    meaning: str
    advice: str
    statuses: tuple[int, ...] = ()  # exit statuses that mean the same, where nothing is printed


# In this order: what kills a build comes before what it said when it died.
FAILURES = (
    Failure(
        "licence",
        r"H0007|Sentinel key not found",
        "Pulsar2 found no licence",
        "This version asks a Sentinel licence server: start it, and set container/network: host in config/config.yaml "
        "if it runs on this machine.",
    ),
    Failure(
        "disk-full",
        r"Errno 28|No space left on device|ENOSPC",
        "the disk is full",
        "Free some space where the results are, since builds run there. `axbake cache` shows what can be removed from "
        "the build cache.",
    ),
    Failure(
        "out-of-memory",
        r"^Killed$|MemoryError|std::bad_alloc|Cannot allocate memory|out of memory",
        "it was killed, most likely because it ran out of memory",
        "Give the machine, the container or the Slurm job (mem_mb of compile_model) more memory, run one compile at a "
        "time, or calibrate with fewer samples (calibration/samples).",
        statuses=(-9, 137),
    ),
    Failure(
        "tiling",
        r"TileFailException",
        "the NPU backend cannot split an operator into tiles that fit its memory",
        "FP32 or highest_mix_precision on this operator is the usual cause: keep it at U16, or set another precision "
        "in pulsar2/{component}/quant/layer_configs. A smaller picture also makes its tensors smaller.",
    ),
    Failure(
        "dynamic-shape",
        r"illegal value_info",
        "the graph has a shape that is not fixed, or is zero",
        "Pulsar2 takes only fixed shapes, as in axbake's own graphs: export your own graph at one size.",
    ),
    Failure(
        "reshape",
        r"v\.is_const",
        "a Reshape takes its shape from the graph, not from a constant",
        "Fold constants before the build: set pulsar2/{component}/onnx_opt/enable_onnxsim: true.",
    ),
    Failure(
        "unsupported-operator",
        r"dont support \w+ opr|no backend implementation|[Uu]nsupported op|op type .* not supported|op \w+ attr .* not exist",
        "the graph has an operator or an attribute that Pulsar2 does not support",
        "op_support_list_ax650.md of AXERA-TECH/pulsar2-docs-en lists the supported ones; another version may support "
        "more.",
    ),
    Failure(
        "too-large",
        r"Error parsing message with type.*TensorProto|narrowing_error|exceeds maximum protobuf size",
        "a file of the build exceeds protobuf's limit of 2 GB",
        "Constant nodes make Pulsar2 simplify the graph, which puts the weights into the graph's file: turn the nodes "
        "into initializers, or bake a smaller model.",
    ),
    Failure(
        "config",
        r"has no field named|ParseError|unrecognized arguments|Invalid enum value",
        "this version of Pulsar2 does not know a field or flag",
        "Leave it out of pulsar2/{component} in config/config.yaml, or use the version that documents it.",
    ),
    Failure(
        "no-program",
        r"executable file not found|pulsar2: (command )?not found|exec: .pulsar2",
        "the image does not contain pulsar2",
        "Correct container/image in config/config.yaml.",
        statuses=(127,),
    ),
)


#: Of `llm_build` alone: before those of every build
OF_LANGUAGE_MODELS = (
    Failure(
        "no-llm-build",
        r"invalid choice: '?llm_build'?",
        "this version of Pulsar2 has no `llm_build`",
        "AXERA's documentation has it from Pulsar2 4.1 to 5.2, and 6.0 was seen to have it: use one of these, or set"
        " text_encoder_place: host.",
    ),
    Failure(
        "heads",
        r"^AssertionError\s*$|AssertionError: *\(?num_attention_heads",
        "it refuses the language model and does not say why",
        "Some versions were seen to take only models whose heads have as many channels together as a state; Qwen3-4B has 32 ×"
        " 128, and 2560. Pulsar2 5.2 and 6.0 were seen to build Qwen3. Use one of these, or set text_encoder_place: host.",
    ),
)


def explain(
    component: str,
    *,
    toolchain: str,
    status: int,
    code: str,
    said: str,
    lines: Sequence[str],
    failures: Sequence[Failure] = FAILURES,
) -> str:
    """A failed build in words: what happened, Pulsar2's own line, what to try.

    Args:
        failures: that may have happened.
        status: of the process; negative: the signal that ended it.
        code, said: of `build_context.json`; empty where it says nothing.
        lines: the last ones of the log.
    """
    log = "Its whole output is in this job's log."
    # Newest first: what ends a build is at the end. The context's words are the shortest, so before all lines.
    heard = [*filter(None, [said]), *(line.strip() for line in reversed(lines))]
    for failure in failures:
        told = next((line for line in heard if re.search(failure.mark, line)), None)
        if told is None and (said or status not in failure.statuses):
            continue
        words = f": {told[:200]}" if told else f" (status {status})"
        advice = failure.advice.format(component=component)
        return f"{component}: {toolchain}: {failure.meaning}{words}. {advice} {log}"
    name = f" ({code})" if code not in ("", "Success", "UnknownError") else ""
    words = next(filter(None, heard), "no error message")
    return f"{component}: {toolchain} ended with status {status}: {words[:500]}{name}. {log}"

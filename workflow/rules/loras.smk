# Takes the table's LoRAs. Makes no file: gives import.smk those that change a component, and tells what of them does not count.

from snakemake.logging import logger

from axbake.loras.files import lora_facts
from axbake.loras.rows import lcm_advice, unknown_marks
from axbake.table import loras_sha256


def loras_of(row, component):
    """LoRAs of *row* that change *component*, in their order; one that changes the UNet alone is none of the text encoder's."""
    told(loras_sha256, row, row["loras"])
    given = [lora for lora in row["loras"] if lora.strength(component)]
    return [lora for lora in given if component in told(lora_facts, Path(lora.path)).components]


def lora_strengths(row):
    """Names of *row*'s LoRAs, and their strengths by component."""
    return [{"name": lora.name, "text_encoder": lora.text_encoder, "unet": lora.unet} for lora in row["loras"]]


def loras(wildcards):
    """Paths of the LoRAs that change a job's component; the text encoder has a rule of its own, without that wildcard."""
    row = row_of(wildcards)
    advise(row)
    return [lora.path for lora in loras_of(row, wildcards.get("component", "text_encoder"))]


def strengths_for(component):
    """Function of a row: the strengths of its LoRAs that change *component*."""
    return lambda row: [lora.strength(component) for lora in loras_of(row, component)]


def loras_digest_for(component):
    """Function of a row: the SHA-256 of its LoRAs that change *component*."""
    return lambda row: " ".join(told(loras_sha256, row, loras_of(row, component)))


ADVISED = set()  # models


def advise(row):
    """Warn, once a run, of marks of LoRAs that change nothing, and of an LCM-LoRA's scheduler and guidance."""
    if row["model"] in ADVISED or not workflow.is_main_process:
        return
    ADVISED.add(row["model"])
    sentences = list(unknown_marks(row))
    for lora in row["loras"]:
        if told(lora_facts, Path(lora.path)).lcm:
            sentences += lcm_advice(row, Path(lora.path))
    for sentence in sentences:
        logger.warning(f"{row['model']}: {sentence}.")

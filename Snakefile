"""axbake: Stable Diffusion checkpoints into .axmodel files for AXERA's AX8850/AX650N NPU."""

from snakemake.utils import min_version

min_version("9.27.1")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/import.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/schedule.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/compile.smk"
include: "workflow/rules/simulate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/bundle.smk"
include: "workflow/rules/board.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        collect("results/{model}/{component}.axmodel", model=MODELS, component=COMPONENTS),
        collect("results/{model}/report.html", model=MODELS),

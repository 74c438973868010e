"""axbake: Stable Diffusion checkpoints into .axmodel files for AXERA's AX8850/AX650N NPU."""

from snakemake.utils import min_version

min_version("9.27.1")


report: "workflow/report/workflow.rst"


include: "workflow/rules/terminal.smk"
include: "workflow/rules/config.smk"
include: "workflow/rules/common.smk"
include: "workflow/rules/toolchain.smk"
include: "workflow/rules/steps.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/import.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/preflight.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/quality.smk"
include: "workflow/rules/compile.smk"
include: "workflow/rules/check.smk"
include: "workflow/rules/simulate.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/bundle.smk"
include: "workflow/rules/board.smk"
include: "workflow/rules/outcomes.smk"
include: "workflow/rules/batch.smk"


rule all:
    default_target: True
    input:
        of_every_model(
            "results/{model}/{graph}.axmodel", "results/{model}/check/{component}.json", "results/{model}/report.html"
        ),
    localrule: True

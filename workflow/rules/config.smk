# Takes config/config.yaml. Says what is wrong with it before Snakemake reads it, which names no line, and runs code that is in it.

from pathlib import Path

from snakemake.exceptions import WorkflowError

from axbake.errors import AxbakeError
from axbake.printable import error_line
from axbake.table import read_config

if workflow.is_main_process and not workflow.modifier.skip_configfile and Path("config/config.yaml").is_file():
    try:
        read_config(Path("config/config.yaml"))
    except AxbakeError as error:
        raise WorkflowError(error_line(error)) from None


configfile: "config/config.yaml"

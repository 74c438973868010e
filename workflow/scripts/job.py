"""Every rule's script: the rule's settings file names the function that does the work."""

from axbake.jobs import run

run(snakemake)

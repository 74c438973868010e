"""Every rule's script: the rule's settings file names the function that does the work."""

from axbake.jobs.running import run

run(snakemake)

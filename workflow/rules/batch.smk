# Takes the table of models. Leaves out rows that cannot be baked, and says when a run of all rows ends what became of each: on the
# screen, in results/summary.tsv and on the page results/report.html.


rule refuse_row:
    """Fail, saying why the row cannot be baked: so a run that left out a row does not end as if it had baked all."""
    input:
        settings=settings(
            "axbake.pages.summary.refuse_row",
            more={"why": lambda row: refused_rows().get(row["model"], "its sources are there")},
            cached=False,
        ),
    output:
        never="results/{model}/refused.json",
    log:
        "logs/{model}/refused.log",
    retries: 0
    conda:
        "../../envs/axbake.yaml"
    message:
        "Left out: {wildcards.model}"
    script:
        "../scripts/job.py"


onsuccess:
    summarise()
    say_what_was_made()


onerror:
    summarise()

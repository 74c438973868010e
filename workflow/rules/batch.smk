# Takes the table of models. Leaves out rows that cannot be baked, and says when a run of all rows ends what became of each: on the
# screen, in results/summary.tsv and on the page results/report.html.


rule refuse_row:
    """Fail, saying why the row cannot be baked: so a run that left out a row does not end as if it had baked all."""
    input:
        settings=settings(
            "refuse_row",
            step(
                "axbake.pages.summary.refuse_row",
                values=lambda model, _: {"why": refused_rows().get(model.name, "its sources are there")},
                cached=False,
            ),
        ),
    output:
        never="results/{model}/refused.json",
    log:
        "logs/{model}/refused.log",
    retries: 0
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        "Left out: {wildcards.model}"
    script:
        "../scripts/job.py"


onsuccess:
    close_display()
    summarise()
    say_what_was_made()


onerror:
    close_display()
    summarise()

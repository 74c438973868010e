# Takes a row whose column `checkpoint` is an address. Makes fetched/checkpoint, a link into checkpoints/downloads, and
# fetched/source.json, which says where the file is from and on what terms. Nothing else in the workflow uses the network, and this
# does where Snakemake was started: a cluster's nodes need neither a way out nor tokens.


rule fetch_checkpoint:
    """Fetch a checkpoint from where the table says, and check that it is the one that the table means."""
    input:
        settings=settings(
            "fetch_checkpoint",
            step(
                "axbake.fetch.job.fetch_checkpoint",
                values=lambda model, _: {"source": model.row["checkpoint"]},
                row=["sha256"],
                cached=False,
                own_code=False,  # better code does not make another file
            ),
        ),
    output:
        checkpoint="results/{model}/fetched/checkpoint",
        record="results/{model}/fetched/source.json",
    log:
        "logs/{model}/fetched.log",
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        "Fetching the checkpoint of {wildcards.model}"
    script:
        "../scripts/job.py"

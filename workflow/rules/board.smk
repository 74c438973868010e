# Takes a bundle. Copies it to the board of config, measures it there or on this host and makes a page of that, or serves it there.
# No default target asks for any of this. Nothing here goes through the build cache: a measurement is of one board and one time.


rule deploy_bundle:
    """Copy a bundle to the board."""
    input:
        settings=settings(
            "deploy_bundle", step("axbake.board.deploy.deploy_bundle", values=of_board(*BOARD), cached=False)
        ),
        manifest=bundle_for_board,
    output:
        deployment="results/{model}/board/deployment.json",
    log:
        "logs/{model}/board/deployment.log",
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        f"Copying the bundle of {{wildcards.model}} to {config['board']['host']}"
    script:
        "../scripts/job.py"


rule benchmark_board:
    """Measure a bundle on the board, and draw its picture there."""
    input:
        settings=settings(
            "benchmark_board",
            step(
                "axbake.board.benchmark.benchmark_board",
                values=of_board(*BOARD, "python", "repeats", "pictures"),
                cached=False,
            ),
        ),
        manifest=bundle_for_board,
        board="results/{model}/board/deployment.json",
    output:
        benchmark="results/{model}/board/benchmark.json",
        image="results/{model}/board/image.png",
    log:
        "logs/{model}/board/benchmark.log",
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        f"Measuring {{wildcards.model}} on {config['board']['host']}"
    script:
        "../scripts/job.py"


rule serve_board:
    """Start a bundle's server on the board, and ask it for one picture through ssh."""
    input:
        settings=settings(
            "serve_board",
            step(
                "axbake.board.serving.serve_board",
                values=of_board(*BOARD, "python", "serve_port"),
                cached=False,
            ),
        ),
        manifest=bundle_for_board,
        board="results/{model}/board/deployment.json",
    output:
        served="results/{model}/board/served.json",
        image="results/{model}/board/served.png",
    log:
        "logs/{model}/board/served.log",
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        f"Serving {{wildcards.model}} on {config['board']['host']}"
    script:
        "../scripts/job.py"


rule benchmark_host:
    """Draw with a bundle on this host, by the program that runs on the board."""
    input:
        settings=settings(
            "benchmark_host",
            step(
                "axbake.board.host.benchmark_host",
                values=of_board("pictures"),
                tools=["onnxruntime", "tokenizers", "numpy", "pillow"],
                cached=False,
            ),
        ),
        manifest="results/{model}/bundle/axbake/manifest.json",
    output:
        benchmark="results/{model}/host/benchmark.json",
        image="results/{model}/host/image.png",
    log:
        "logs/{model}/host/benchmark.log",
    conda:
        "../../envs/axbake.yaml"
    threads: threads_of(4)
    resources:
        mem_mb=memory_of(12000),
        runtime=more_each_time(60),
    message:
        "Measuring {wildcards.model} on this host, which is not a board"
    script:
        "../scripts/job.py"


rule write_board_report:
    """Write the page of a benchmark."""
    input:
        settings=settings(
            "write_board_report",
            step(
                "axbake.board.report.write_board_report",
                tools=["jinja2", "numpy", "pillow", "scikit-image"],
                data=["axbake/pages"],
                cached=False,
            ),
            part="place",
        ),
        benchmark="results/{model}/{place}/benchmark.json",
        image="results/{model}/{place}/image.png",
        reference="results/{model}/reference/image.png",
        simulation="results/{model}/simulation/image.png",
        simulated="results/{model}/simulation/distance.json",
    output:
        distance="results/{model}/{place}/distance.json",
        page=report(
            "results/{model}/{place}/report.html",
            caption="../report/board.rst",
            category="Boards",
            labels={"model": "{model}", "measured on": "{place}"},
        ),
    log:
        "logs/{model}/{place}/report.log",
    wildcard_constraints:
        place="board|host",
    localrule: True
    conda:
        "../../envs/axbake.yaml"
    message:
        "Writing the page of {wildcards.model} on the {wildcards.place}"
    script:
        "../scripts/job.py"

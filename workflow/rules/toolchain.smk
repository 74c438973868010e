# Takes the toolchain of config. Makes what decides a build, how the compiler is started, and where the models are that hosts run.

EMULATES = config["toolchain"] == "emulator"
EMULATOR_CODE = "".join(code_of("axbake.emulator.__main__.main").values())
# Where the models are that the host runs: those that boards run it cannot.
EMULATED = "results/{model}" if EMULATES else "results/{model}/emulated"


def compiler(model):
    """What decides a build besides graph, samples and config: Pulsar2's version, or the emulator's code and tools."""
    return emulator(model) if EMULATES else {"pulsar2": config["pulsar2_version"]}


EMULATOR_TOOLS = ["numpy", "onnx", "onnxruntime", "pillow", "json5"]


def emulator(model):
    """What decides a build by the emulator: its code, and the tools that it uses."""
    return {"emulator": EMULATOR_CODE} | {tool: tool_version(tool) for tool in EMULATOR_TOOLS}


FOLDER_CODE = "".join(
    code_of("axbake.weights.language_folder.write_folder", "axbake.weights.language_folder.write_table").values()
)
LAYERS_CODE = "".join(code_of("axbake.emulator.llm_build.main").values())


def of_layers(given):
    """What decides the layers of a language model, of what decides builds: also the folder, and the emulator's own code for layers."""
    return given | {"folder": FOLDER_CODE} | ({"emulator": LAYERS_CODE} if "emulator" in given else {})


def launch(model):
    """How the compiler is started (`axbake.toolchain.launch.Launch`)."""
    how = {"toolchain": config["toolchain"], "minutes": config["time_limit"]}
    if not EMULATES:
        how["version"] = config["pulsar2_version"]
    return {"launch": how | (config["container"] if config["toolchain"] in ENGINES else {})}


def launch_emulator(model):
    """How the emulator is started, whatever the toolchain of config."""
    return {"launch": {"toolchain": "emulator", "minutes": config["time_limit"]}}


def check_compiler():
    """End a run that compiles on this machine unless the compiler is there and of config's version.

    So a missing image shows now, and not after an hour of calibration. On a cluster the jobs' own nodes are asked, by the jobs.
    """
    compilers = {"compile_model", *(f"build_{one.name}_of_{family.name}" for family, one in CARDED)}
    compiles = any(job.rule.name in compilers for job in workflow.dag.needrun_jobs())
    if not compiles or EMULATES or not workflow.is_main_process or not workflow.local_exec:
        return
    told(lambda: Launch(**launch(None)["launch"]).check())


def bundle_for_board(wildcards):
    """Path of a bundle's manifest, in a project that has a board and a compiler whose models it runs."""
    if not config["board"]["host"]:
        raise SystemExit("no board: set board/host in the config (docs/board.md).")
    if EMULATES:
        raise SystemExit(
            f"{wildcards.model}: toolchain is emulator in config; its models run on hosts, not on boards. Choose a toolchain"
            " of Pulsar2's, or measure on this host: results/{model}/host/report.html."
        )
    return "results/{model}/bundle/axbake/manifest.json"

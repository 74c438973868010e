"""A project: the directory in which models are baked. A checkout is one; an installed axbake makes one where it is started."""

import shutil
from pathlib import Path

from axbake.cache.errors import writing
from axbake.root import ROOT

CONFIG = Path("config/config.yaml")
#: What a project has of its own, to be edited, besides the Snakefile
OWN = ("config", "profiles", "resources/demo", "resources/demo_flow")
SNAKEFILE = '''"""The workflow of the axbake that is installed beside this Snakemake."""

from axbake.root import ROOT


include: ROOT / "Snakefile"


workflow.default_target = "all"  # Snakemake forgets the one of what is included
'''


def lay_out() -> list[str]:
    """Make the working directory a project, unless it has a config; files that are there stay.

    Returns:
        what was made.

    Raises:
        NotWritten: the directory cannot be written.
    """
    if CONFIG.is_file():
        return []
    made = []
    for folder in OWN:
        for file in sorted((ROOT / folder).rglob("*")):
            place = Path(folder) / file.relative_to(ROOT / folder)
            if file.is_file() and file.suffix != ".pyc" and not place.exists() and place != CONFIG:
                with writing(place):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, place)
                made.append(str(place))
    if not Path("Snakefile").exists():
        with writing(Path("Snakefile")):
            Path("Snakefile").write_text(SNAKEFILE, encoding="utf-8")
        made.append("Snakefile")
    with writing(CONFIG):  # the last: with it the project is whole
        shutil.copyfile(ROOT / CONFIG, CONFIG)
    return [*made, str(CONFIG)]


def open_project() -> None:
    """Make the working directory a project unless it is one, and say so.

    Raises:
        NotWritten
    """
    if made := lay_out():
        print(f"A new project in {Path.cwd()}: {', '.join(dict.fromkeys(Path(path).parts[0] for path in made))}.")

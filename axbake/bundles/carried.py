"""What a bundle of the layout `axbake` carries of this checkout."""

from axbake.root import shipped

PATTERNS = ("*.py", "serve/*.py", "serve/page/*")


def runtime_files() -> list[str]:
    """Files of `axbake/runtime/`: its modules, and the page of its server; as paths from there, in POSIX's form."""
    runtime = shipped("axbake/runtime")
    return sorted(
        path.relative_to(runtime).as_posix() for one in PATTERNS for path in runtime.glob(one) if path.is_file()
    )

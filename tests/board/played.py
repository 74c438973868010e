"""A board that is played: a real sshd on the loopback, and programs that print what AXERA's were seen to print."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.services.sshd import ALIAS, Sshd

HERE = Path(__file__).parent
RECORDED = HERE / "recorded"
# Cards are locked on the whole machine, and test processes run beside each other.
CARD = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def recorded(name: str) -> str:
    """What one of the real programs printed."""
    return (RECORDED / name).read_text()


def recorded_smi(process: bool = False) -> str:
    """What axcl-smi printed, of card `CARD`; with a *process* on it or without."""
    text = recorded("axcl-smi.txt")
    if process:
        above, border = text[: text.rindex("+---")], text[text.rindex("+---") :]
        text = above + recorded("axcl-smi.process.txt") + border
    return text.replace("|    0 ", f"|    {CARD} ")


@dataclass
class PlayedBoard:
    """The board and this host's way to it. What the board's programs play is steered by files beside them."""

    sshd: Sshd
    programs: Path  # directory of axcl-smi and the others
    directory: Path  # of bundles

    @classmethod
    def start(cls, directory: Path) -> "PlayedBoard":
        """A new board, with all that it has in *directory*."""
        programs = directory / "board" / "bin"
        shutil.copytree(HERE / "bin", programs)
        shutil.copytree(RECORDED, directory / "board" / "recorded")
        (directory / "board" / "recorded" / "axcl-smi.txt").write_text(recorded_smi())
        path = f"{programs}:{os.environ['PATH']}"
        environment = {"PATH": path, "PYTHONPATH": str(HERE / "python"), "OMP_NUM_THREADS": "1"}
        return cls(Sshd(directory / "sshd", environment=environment), programs, directory / "bundles")

    def reset(self, directory: Path) -> None:
        """Make it a board that nobody has used; bundles go to *directory*."""
        shutil.rmtree(self.programs)
        shutil.copytree(HERE / "bin", self.programs)
        self.sshd.reset()
        self.directory = directory

    def play(self, program: str, text: str, status: int = 0) -> None:
        """Let *program* print *text* and end with *status*."""
        (self.programs / f"{program}.now").write_text(text)
        (self.programs / f"{program}.status").write_text(str(status))

    def play_smi(self, old: str, new: str) -> None:
        """Let axcl-smi print what is recorded, with *old* replaced."""
        assert old in recorded_smi()
        self.play("axcl-smi", recorded_smi().replace(old, new))

    @property
    def settings(self) -> dict:
        """What config would say of it."""
        return {
            "host": ALIAS,
            "user": "",
            "port": 0,
            "directory": str(self.directory),
            "kind": "card",
            "device": CARD,
        }

    @property
    def measuring(self) -> dict:
        """What config would say besides, to measure there."""
        return self.settings | {"python": sys.executable, "repeats": 10, "pictures": 2}

    def files(self) -> list[str]:
        """Everything below the directory of bundles."""
        found = (path.relative_to(self.directory) for path in self.directory.rglob("*") if path.is_file())
        return sorted(map(str, found))

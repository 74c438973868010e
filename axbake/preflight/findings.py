"""What a check found, and how it is shown."""

from collections.abc import Iterable
from dataclasses import dataclass

LEVELS = ("error", "warning", "note")  # an error stops the compile
MOST = 5  # examples that a finding names


@dataclass(frozen=True)
class Finding:
    """Something to know before a compile."""

    component: str  # or «model»: of all together
    check: str  # operators, shapes, constants, names, sizes, samples, machine, card, estimate
    level: str  # of LEVELS
    text: str  # what was found, what was expected, what to do


def named(names: Iterable[str]) -> str:
    """A few of *names*, and how many more there are."""
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return ", ".join(found[:MOST]) + more


def show(findings: list[Finding]) -> str:
    """*findings* as a table for people, the worst first."""
    ordered = sorted(findings, key=lambda finding: LEVELS.index(finding.level))
    counts = [f"{sum(f.level == level for f in findings)} {level}s" for level in LEVELS[:2]]
    lines = [f"{f.level:8}{f.component:14}{f.check:11}{f.text}" for f in ordered]
    return "\n".join([f"preflight: {', '.join(counts)}", *lines])

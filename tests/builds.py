"""Builds of graphs as the workflow has them (`axbake.model.Model.build`), for tests that have no table of models."""

from typing import Any

from axbake.networks.component import Component, addresses
from axbake.toolchain.build_config import Build, build_config

CHIP = {"target_hardware": "AX650", "npu_mode": "NPU3"}
#: The row's cells that graphs depend on, where a test says nothing else
COLUMNS = {"height": 64, "width": 64, "prompt_chunks": 1, "program": "axera"}


def build_of(component: Component, number: int = 0, *, precision: str = "U16", **columns: Any) -> Build:
    """What of Pulsar2's config of a component's graph *number* the user does not set.

    Args:
        columns: of the row, that differ from `COLUMNS`.
    """
    given = {name: value for name, value in (COLUMNS | columns).items() if name in component.columns}
    return Build(
        name=addresses(component)[number].rpartition("/")[2],
        component=component.name,
        role=component.role,
        inputs=component.graphs[number].inputs(**given),
        precision=precision,
        **CHIP,
    )


def config_of(component: Component, number: int = 0, **how: Any) -> dict[str, Any]:
    """Pulsar2's whole config of the same, to which the user adds nothing."""
    return build_config(build_of(component, number, **how), {})

"""vconfs doctor: check what is missing on this machine, and how to get it.

It works where the packages that vconfs needs are missing.
"""

from __future__ import annotations

import json

import attrs
import click

from vconfs.cli._checks import Finding, Machine, examine
from vconfs.cli._mount_table import all_mounts, states
from vconfs.errors import VconfsError
from vconfs.syntax.printable import printable

_COLOURS = {"ok": "green", "optional": "yellow", "missing": "red"}


@click.command("doctor", short_help="Check what this machine lacks, and how to get it.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per check.")
def command(as_json: bool) -> None:
    """Check this machine for what vconfs needs, and say how to get what is not there.

    The result of each check is ok, optional (only some uses need it) or missing. If anything is
    missing, no mount can work, and the exit code is 1.

    \b
    Examples:
      vconfs doctor
      vconfs doctor --json | jq -r 'select(.state != "ok") | .advice'
    """
    findings = list(examine(Machine(mounts=states(all_mounts()))))
    for finding in findings:
        click.echo(json.dumps(attrs.asdict(finding)) if as_json else _describe(finding))
    missing = [finding.message for finding in findings if finding.state == "missing"]
    if missing:
        raise VconfsError(f"no mount can work here: {'; '.join(missing)}")


def _describe(finding: Finding) -> str:
    state = click.style(f"{finding.state:<10}", fg=_COLOURS[finding.state])
    advice = f"\n{'':10}→ {printable(finding.advice)}" if finding.advice else ""
    return f"{state}{printable(finding.message)}{advice}"

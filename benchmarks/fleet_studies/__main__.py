"""Studies of fleets: what rules and settings do to rounds, to devices and to who is heard.

    python -m benchmarks.fleet_studies over-selection --out FOLDER --plot docs/fleet-over-selection.png

over-selection, report-goal, buffered, bits and masks need nothing else (`standins.py`). `rules` and
`attacks` train for real, and take a bundle and the public key of whoever signed it. Whatever is
stopped goes on when it is asked for again with the same folder.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.fleet_studies import drawing, standins
from device_runtime.errors import FedboardError

FIGURES = "figures.json"


def main() -> None:
    """Do one study: print its table, and draw its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=[*standins.STUDIES, "rules", "attacks"])
    parser.add_argument("--out", type=Path, required=True, help="folder of its fleets")
    parser.add_argument("--plot", type=Path, help="picture to write")
    parser.add_argument("--devices", type=int, default=standins.Size.devices)
    parser.add_argument("--days", type=float, default=standins.Size.days)
    parser.add_argument("--seeds", type=int, default=standins.Size.seeds)
    parser.add_argument("--processes", type=int, default=2, help="fleets at a time")
    asked = parser.parse_args()
    study = standins.STUDIES[asked.study]
    size = standins.Size(asked.devices, asked.days, asked.seeds)
    rows = standins.played(study, size, asked.out, asked.processes)
    _keep(asked.out, rows)
    print(standins.table(study, rows))
    if asked.plot:
        drawing.study(study, rows, asked.plot)


def _keep(out: Path, figures: Any) -> None:
    (out / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))

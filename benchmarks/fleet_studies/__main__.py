"""Studies of fleets: what rules and settings do to rounds, to devices and to who is heard.

    python -m benchmarks.fleet_studies STUDY --out FOLDER --plot docs/fleet-STUDY.png

over-selection, report-goal, buffered, bits and masks need nothing else (`standins.py`). `rules` and
`attacks` train for real, and take `--bundle` and `--key`, the public key of whoever signed it. What
is stopped goes on when it is asked for again with the same folder.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fleet_studies import attacks, drawing, rules, standins
from device_runtime.errors import ConfigError, FedboardError
from fleet.settings import Training

FIGURES = "figures.json"


def main() -> None:
    """Do one study: print its table, and draw its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=[*standins.STUDIES, "rules", "attacks"])
    parser.add_argument("--out", type=Path, required=True, help="folder of its fleets")
    parser.add_argument("--plot", type=Path, help="picture to write")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--days", type=float, default=standins.Size.days)
    parser.add_argument("--seeds", type=int, default=standins.Size.seeds)
    parser.add_argument("--rounds", type=int, help="of a study that trains")
    parser.add_argument("--goal", type=int, help="report goal of a study that trains")
    parser.add_argument("--processes", type=int, default=2, help="fleets at a time")
    parser.add_argument("--bundle", type=Path, help="signed, that devices train by")
    parser.add_argument("--key", help="public key of whoever signed it, or a file with it")
    parser.add_argument("--from", type=Path, dest="figures", help="figures.json to show again")
    asked = parser.parse_args()
    figures = json.loads(asked.figures.read_text()) if asked.figures else played(asked)
    if not asked.figures:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")
    if asked.study == "rules":
        told, draw = rules.table(figures), drawing.rules
    elif asked.study == "attacks":
        told, draw = attacks.table(figures), drawing.attacks
    else:
        study = standins.STUDIES[asked.study]
        told, draw = standins.table(study, figures), partial(drawing.study, study)
    print(told)
    if asked.plot:
        draw(figures, asked.plot)


def played(asked: argparse.Namespace) -> Any:
    """Let the fleets of a study live: its figures."""
    if asked.study in standins.STUDIES:
        size = standins.Size(asked.devices or standins.Size.devices, asked.days, asked.seeds)
        study = standins.STUDIES[asked.study]
        return standins.played(study, size, asked.out, asked.processes)
    if asked.bundle is None or asked.key is None:
        raise ConfigError(
            "fleet studies",
            f"expected --bundle and --key for {asked.study}, found none",
            "make a bundle with `fedboard train` and `fedboard export`",
        )
    key = Path(asked.key).read_text().strip() if Path(asked.key).is_file() else asked.key
    training = Training(str(asked.bundle.resolve()), (key,))
    given = {"devices": asked.devices, "rounds": asked.rounds, "goal": asked.goal}
    named = {name: value for name, value in given.items() if value is not None}
    if asked.study == "rules":
        return rules.played(rules.Size(**named), training, 0, asked.out)
    return attacks.played(attacks.Size(**named), training, 0, asked.out, asked.processes)


if __name__ == "__main__":
    try:
        main()
    except FedboardError as error:
        sys.exit(str(error))

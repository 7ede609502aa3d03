"""The peers' environments: built once with the project's uv, then used again.

Our own peer and plain TFF run in the environment this runs in.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / ".environments"
PACKAGES = {
    "pfl": ["torch==2.13.0", "pfl==0.6.0"],
    "fedjax": ["jax==0.10.2", "fedjax==0.0.17"],
    "accounts": ["jax-privacy==2.0.0", "dp-accounting==0.6.0"],
}


def python(name: str) -> Path:
    """The interpreter of an environment, built if it is not there yet.

    It is built again if it was of other packages. Raises CalledProcessError if uv cannot build it.
    """
    folder, wanted = FOLDER / name, "\n".join(PACKAGES[name])
    stamp = folder / "packages.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(
            f"building the environment of {name}: {' '.join(PACKAGES[name])}",
            file=sys.stderr,
            flush=True,
        )
        # the project's own overrides would pin an old JAX
        uv = [str(ROOT / ".tools/bin/uv"), "--no-config", "--quiet"]
        variables = dict(os.environ)
        if "PIP_FIND_LINKS" in variables:  # a machine that tells pip where its wheels are
            variables.setdefault("UV_FIND_LINKS", variables["PIP_FIND_LINKS"])
        subprocess.run(
            [*uv, "venv", "--clear", "--python", sys.executable, str(folder)], check=True
        )
        subprocess.run(
            [*uv, "pip", "install", "--python", str(folder / "bin/python"), *PACKAGES[name]],
            check=True,
            env=variables,
        )
        stamp.write_text(wanted)
    return folder / "bin" / "python"

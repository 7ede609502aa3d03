"""Accounts beside others': sensitivities of jax-privacy, epsilons of dp-accounting.

    python -m benchmarks.accounts

Asks both, in an environment of their own, what they say of cases that are made by a seed, writes
that to tests/golden/accounts.json, and prints by how much ours differs at most.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks import environments
from device_runtime import accountant, durable, strategy
from device_runtime.noise import Mechanism, Noise

GOLDEN = environments.ROOT / "tests" / "golden" / "accounts.json"
RHOS = (1e-12, 1e-6, 1e-3, 0.0145, 0.2016, 0.81, 2.0, 30.0, 1e4)
DELTAS = (1e-300, 1e-100, 1e-30, 1e-10, 1e-6, 1e-3, 0.1)


def cases() -> dict:
    """What is asked: BLTs by a seed beside that which was published, and budgets on a grid."""
    rng = np.random.default_rng(19)
    published = [1.0, 0.99254452, 0.79440471], [0.00755884, 0.1277174, 0.32779701]
    matrices = [matrix(*published, 2000, 314, 6), matrix(*published, 2000, 1, 2000)]
    for _ in range(16):
        buffers, rounds = rng.integers(1, 4), int(rng.choice([7, 60, 500]))
        decays = np.sort(rng.choice([rng.random(), 0.999, 1.0], buffers))[::-1]
        scales = rng.random(buffers) / buffers
        separation, most = int(rng.integers(1, rounds + 1)), int(rng.integers(1, 30))
        matrices.append(matrix(decays.tolist(), scales.tolist(), rounds, separation, most))
    budgets = [{"rho": rho, "delta": delta} for rho in RHOS for delta in DELTAS]
    return {"matrices": matrices, "budgets": budgets}


def matrix(
    decays: list[float], scales: list[float], rounds: int, separation: int, participations: int
) -> dict:
    """One BLT, and how a device takes part."""
    return {
        "decays": decays,
        "scales": scales,
        "rounds": rounds,
        "separation": separation,
        "participations": participations,
    }


def ours(case: dict) -> dict[str, float]:
    """What ours says of a case."""
    if "rho" in case:
        told = {"epsilon": accountant.epsilon, "epsilon_rdp": accountant.epsilon_rdp}
        return {name: by(case["rho"], case["delta"]) for name, by in told.items()}
    rounds, most = case["rounds"], case["participations"]
    buffers = tuple(case["decays"]), tuple(case["scales"])
    noise = Noise(Mechanism.BLT, 1.0, 8.0, 1e-10, rounds, most, 0, *buffers)
    return {
        "sensitivity": strategy.sensitivity(noise, (rounds,), case["separation"], most),
        "row_norm": strategy.row_norm(noise),
        "prefix_rmse": strategy.prefix_rmse(noise, rounds),
    }


def differences(answers: dict) -> dict[str, float]:
    """By name of a figure, how far ours is from theirs at most, relative to theirs."""
    most: dict[str, float] = {}
    for case in (*answers["matrices"], *answers["budgets"]):
        for name, value in ours(case).items():
            far = abs(value - case[name]) / max(abs(case[name]), 1e-9)
            most[name] = max(most.get(name, 0.0), far)
    return most


def main() -> int:
    """Write the golden file, and print how far ours is from it."""
    program = Path(__file__).parent / "peers" / "accounts.py"
    done = subprocess.run(
        [environments.python("accounts"), program],
        input=json.dumps(cases()),
        capture_output=True,
        text=True,
        check=True,
        env={"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"},
    )
    answers = json.loads(done.stdout)
    versions = {"made_by": environments.PACKAGES["accounts"]}
    durable.share(GOLDEN, (json.dumps(versions | answers, indent=0) + "\n").encode())
    for name, far in differences(answers).items():
        print(f"{name}: differs by {far:.1e} at most")
    return 0 if all(math.isfinite(far) for far in differences(answers).values()) else 1


if __name__ == "__main__":
    sys.exit(main())

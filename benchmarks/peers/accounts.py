"""Peer: jax-privacy's sensitivities and errors of Toeplitz matrices, dp-accounting's epsilons.

Reads what is asked as JSON from standard input, and writes the answers to standard output.
"""

import json
import math
import sys

import numpy as np
from dp_accounting import GaussianDpEvent, gaussian_mechanism, rdp
from jax_privacy.matrix_factorization import buffered_toeplitz, toeplitz


def of_matrix(case):
    """Sensitivity, and how wide the noise is, of a BLT with one way to take part."""
    rounds = case["rounds"]
    blt = buffered_toeplitz.BufferedToeplitz.build(case["decays"], case["scales"])
    column = blt.toeplitz_coefs(rounds)
    squared = toeplitz.minsep_sensitivity_squared(
        column, case["separation"], case["participations"], rounds
    )
    errors = np.array(toeplitz.per_query_error(strategy_coef=column, n=rounds))
    return case | {
        "sensitivity": math.sqrt(float(squared)),
        "row_norm": float(np.linalg.norm(toeplitz.inverse_coef(column, rounds))),
        "prefix_rmse": math.sqrt(float(errors.mean())),
    }


def of_budget(case):
    """Epsilon of one Gaussian mechanism: exactly, and by Renyi differential privacy."""
    sigma = 1 / math.sqrt(2 * case["rho"])
    orders = [1 + 10 ** (power / 50) for power in range(-150, 450)]
    renyi = rdp.RdpAccountant(orders)
    renyi.compose(GaussianDpEvent(sigma))
    return case | {
        "epsilon": float(gaussian_mechanism.get_epsilon_gaussian(sigma, case["delta"])),
        "epsilon_rdp": float(renyi.get_epsilon(case["delta"])),
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answers = {
        "matrices": [of_matrix(case) for case in asked["matrices"]],
        "budgets": [of_budget(case) for case in asked["budgets"]],
    }
    json.dump(answers, sys.stdout)

"""The project itself: `model/simulation.py` on a worker of its own.

It draws the cohorts itself; their targets say that they are the peers'.
"""

from benchmarks import work as works
from benchmarks.peers import common
from model import simulation, worker


def main() -> None:
    """Do the work, and write when rounds ended and what came out."""
    asked = common.arguments(threads=1)
    work, marks = common.read(asked.work), common.Marks()
    recipe = works.recipe(work.cohort, work.rounds, work.seed)
    with worker.running(asked.threads):
        marks.mark()
        for done in simulation.train(work.weights, work.population(), recipe):
            marks.mark()
            if done.targets != work.tokens(done.number - 1):
                raise SystemExit(
                    f"round {done.number}: trained {done.targets} targets, the peers "
                    f"{work.tokens(done.number - 1)}"
                )
    common.finish(asked.result, marks, ["tensorflow-federated", "tensorflow"], done.weights)


if __name__ == "__main__":
    main()

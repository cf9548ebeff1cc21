"""crowd-kit and a numpy IWMV as a benchmark server, the peer of examples/aggregate_bench.rs.

    python crowd_aggregation.py FOLDER          # FOLDER/<set>/label.csv: item,worker,label

Reads lines `CASE SECONDS`, answers each with one line of JSON (see common::testing::bench_protocol).
A case is SET:METHOD:

    dawid_skene   crowd-kit's DawidSkene(n_iter=100).fit_predict
    one_coin      crowd-kit's OneCoinDawidSkene(n_iter=100).fit_predict
    iwmv          iterative weighted majority vote in vectorised numpy
    numpy_ds      Dawid-Skene EM in vectorised numpy

What is timed is one fit. crowd-kit gets its table of tasks, workers and labels as integers, numpy
its three arrays of codes; reading the file and coding its strings is timed on neither side.

Versions: Python 3.11, crowd-kit 1.4.2 with scikit-learn < 1.6 and pandas < 3, numpy 2.4.6.
One thread: set OMP_NUM_THREADS=1.
"""

import json
import pathlib
import resource
import statistics
import sys
import time

import numpy as np
import pandas as pd


class Crowd:
    """Votes as codes, labels in ascending order."""

    def __init__(self, path: pathlib.Path):
        table = pd.read_csv(path, dtype=str)
        self.item, items = pd.factorize(table["item"])
        self.worker, workers = pd.factorize(table["worker"])
        self.label, labels = pd.factorize(table["label"], sort=True)
        self.shape = len(items), len(workers), len(labels)
        self.table = pd.DataFrame({"task": self.item, "worker": self.worker, "label": self.label})

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Weighted votes per item and label."""
        items, _, labels = self.shape
        scores = np.zeros((items, labels))
        np.add.at(scores, (self.item, self.label), weights[self.worker])
        return scores


def iwmv(crowd: Crowd) -> int:
    """Vote, agreement w, weight L w - 1, until no label changes; the number of updates."""
    _, workers, labels = crowd.shape
    given = np.bincount(crowd.worker, minlength=workers)
    weights, before = np.ones(workers), None
    for rounds in range(101):
        consensus = crowd.scores(weights).argmax(axis=1)
        if before is not None and np.array_equal(consensus, before):
            return rounds
        agrees = crowd.label == consensus[crowd.item]
        weights = labels * np.bincount(crowd.worker, weights=agrees, minlength=workers) / given - 1
        before = consensus
    return 100


def dawid_skene(crowd: Crowd) -> int:
    """EM from vote shares until the mean log-likelihood per vote gains less than 1e-5."""
    items, workers, labels = crowd.shape
    posterior = crowd.scores(np.ones(workers))
    posterior /= posterior.sum(axis=1, keepdims=True)
    before = -np.inf
    for rounds in range(1, 101):
        prior = posterior.mean(axis=0) + 1e-12
        confusion = np.full((workers, labels, labels), 0.01)
        np.add.at(confusion, (crowd.worker, slice(None), crowd.label), posterior[crowd.item])
        confusion /= confusion.sum(axis=2, keepdims=True)
        joint = np.tile(np.log(prior), (items, 1))
        np.add.at(joint, crowd.item, np.log(confusion)[crowd.worker, :, crowd.label])
        top = joint.max(axis=1, keepdims=True)
        posterior = np.exp(joint - top)
        mass = posterior.sum(axis=1, keepdims=True)
        posterior /= mass
        likelihood = float((top + np.log(mass)).sum()) / len(crowd.label)
        if likelihood - before < 1e-5:
            break
        before = likelihood
    return rounds


def crowd_kit(name: str):
    from crowdkit import aggregation

    def fit(crowd: Crowd) -> int:
        model = getattr(aggregation, name)(n_iter=100)
        model.fit_predict(crowd.table)
        return len(model.loss_history_)

    return fit


METHODS = {
    "dawid_skene": lambda: crowd_kit("DawidSkene"),
    "one_coin": lambda: crowd_kit("OneCoinDawidSkene"),
    "iwmv": lambda: iwmv,
    "numpy_ds": lambda: dawid_skene,
}


def answer(fit, crowd: Crowd, seconds: float) -> dict:
    """Times of fits within `seconds`, at least 3."""
    wall, cpu = [], []
    start = time.perf_counter()
    while len(wall) < 3 or time.perf_counter() - start < seconds:
        before, before_cpu = time.perf_counter(), time.process_time()
        rounds = fit(crowd)
        wall.append(1e3 * (time.perf_counter() - before))
        cpu.append(1e3 * (time.process_time() - before_cpu))
    return {
        "runs": len(wall),
        "wall_min_ms": min(wall),
        "wall_median_ms": statistics.median(wall),
        "cpu_median_ms": statistics.median(cpu),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rounds": rounds,
    }


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    crowds: dict[str, Crowd] = {}
    for line in sys.stdin:
        case, seconds = line.split()
        name, method = case.split(":")[:2]
        try:
            if name not in crowds:
                crowds[name] = Crowd(folder / name / "label.csv")
            fit = METHODS[method]()
            fit(crowds[name])
            reply = answer(fit, crowds[name], float(seconds))
        except (KeyError, OSError, ImportError) as problem:
            reply = {"error": repr(problem)}
        print(json.dumps({"case": case, **reply}), flush=True)


if __name__ == "__main__":
    main()

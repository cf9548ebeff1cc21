"""Goldens for the aggregators: a small crowd and what numpy makes of it.

Independent of the Rust code: majority vote, IWMV and Dawid-Skene EM written out in numpy.
Run with Python 3.11, numpy 2.4.6:  python make_golden.py > golden.json
"""

import json

import numpy as np

MAXIMUM_ROUNDS, ALPHA, TOLERANCE = 100, 0.01, 1e-5
ITEMS, WORKERS, LABELS, VOTES = 60, 9, 3, 320

random = np.random.default_rng(7)
truth = random.integers(0, LABELS, ITEMS)
accuracy = np.linspace(0.35, 0.9, WORKERS)
item = random.integers(0, ITEMS, VOTES)
worker = random.integers(0, WORKERS, VOTES)
wrong = (truth[item] + random.integers(1, LABELS, VOTES)) % LABELS
label = np.where(random.random(VOTES) < accuracy[worker], truth[item], wrong)


def scores(weights):
    table = np.zeros((ITEMS, LABELS))
    np.add.at(table, (item, label), weights[worker])
    return table


def iwmv():
    total = np.bincount(worker, minlength=WORKERS)
    weights, previous, rounds = np.ones(WORKERS), None, 0
    while True:
        table = scores(weights)
        consensus = table.argmax(axis=1)
        if rounds == MAXIMUM_ROUNDS or np.array_equal(consensus, previous):
            return table, weights, rounds
        agreed = np.bincount(worker, weights=label == consensus[item], minlength=WORKERS)
        weights, previous, rounds = LABELS * agreed / total - 1, consensus, rounds + 1


def dawid_skene():
    posterior = scores(np.ones(WORKERS))
    posterior /= posterior.sum(axis=1, keepdims=True)
    previous, history = -np.inf, []
    for _ in range(MAXIMUM_ROUNDS):
        prior = posterior.mean(axis=0) + 1e-12
        confusion = np.full((WORKERS, LABELS, LABELS), ALPHA)
        np.add.at(confusion, (worker, slice(None), label), posterior[item])
        confusion /= confusion.sum(axis=2, keepdims=True)
        joint = np.tile(np.log(prior), (ITEMS, 1))
        np.add.at(joint, item, np.log(confusion[worker, :, label]))
        top = joint.max(axis=1, keepdims=True)
        evidence = np.exp(joint - top).sum(axis=1, keepdims=True)
        posterior = np.exp(joint - top) / evidence
        history.append(float((top + np.log(evidence)).sum()) / VOTES)
        if history[-1] - previous < TOLERANCE:
            break
        previous = history[-1]
    return posterior, history


iwmv_scores, iwmv_weights, iwmv_rounds = iwmv()
posterior, history = dawid_skene()
assert len(np.unique(item)) == ITEMS
print(
    json.dumps(
        {
            "numpy": np.__version__,
            "votes": np.stack([item, worker, label], axis=1).tolist(),
            "items": ITEMS,
            "workers": WORKERS,
            "labels": LABELS,
            "truth": truth.tolist(),
            "majority_vote": scores(np.ones(WORKERS)).tolist(),
            "iwmv": {
                "scores": iwmv_scores.tolist(),
                "weights": iwmv_weights.tolist(),
                "rounds": iwmv_rounds,
            },
            "dawid_skene": {"posterior": posterior.tolist(), "history": history},
        }
    )
)

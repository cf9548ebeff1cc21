"""Write a golden of scikit-learn's multinomial logistic regression as JSON.

The objective is C x sum of (weighted) softmax log losses + |W|^2 / 2, intercepts not penalised.
Made with scikit-learn 1.5 and numpy 2; `python make_multinomial.py` writes multinomial.json.
"""

import json
import pathlib

import numpy as np
from sklearn.linear_model import LogisticRegression


def case(name, features, labels, strength, weights=None):
    model = LogisticRegression(C=strength, solver="lbfgs", tol=1e-12, max_iter=100_000)
    model.fit(features, labels, sample_weight=weights)
    return {
        "name": name,
        "features": features.tolist(),
        "labels": labels.tolist(),
        "weights": None if weights is None else weights.tolist(),
        "C": strength,
        "coefficients": model.coef_.tolist(),
        "probabilities": model.predict_proba(features).tolist(),
    }


def main():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(80, 4)).round(6)
    logits = features @ generator.normal(size=(4, 3)) * 1.5
    labels = np.array([generator.choice(3, p=np.exp(l) / np.exp(l).sum()) for l in logits])
    weights = (generator.random(80) + 0.1).round(6)
    cases = [
        case("plain", features, labels, 1.0),
        case("strong_penalty", features, labels, 0.01),
        case("weighted", features, labels, 10.0, weights),
    ]
    pathlib.Path("multinomial.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()

"""Write golden values of scikit-learn, scipy and numpy for Eq. 2, 6, 7 and the ridge map as JSON.

eq2      L2 logistic regression, minimises C x sum of log losses + |w|^2 / 2, intercept free
         (scikit-learn's LogisticRegression; C = 1 / lambda of the paper's Eq. 2)
eq6      root of mean sigmoid(z + b) = target by scipy's brentq
eq7      minimum of the log loss + lambda / 2 |w - w0|^2 + mu / 2 (b - b0)^2 by scipy's BFGS
ridge    scikit-learn's Ridge on centred targets, fitted n times without one row each; the mean of
         the targets stays that of all rows
metrics  roc_auc_score and log_loss of clicked impressions

Run with scikit-learn and scipy installed: python make_golden.py > golden.json
"""

import json
import sys

import numpy as np
import scipy
import sklearn
from scipy.optimize import brentq, minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, roc_auc_score

rng = np.random.default_rng(7)
rows, width = 120, 5
x = rng.normal(size=(rows, width)).round(3)
y = (rng.random(rows) < expit(x @ np.array([1.0, -0.5, 0.0, 0.3, 0.8]) - 0.7)).astype(int)

eq2 = []
for c in (0.03, 1.0, 10.0):
    model = LogisticRegression(C=c, tol=1e-12, max_iter=10_000).fit(x, y)
    eq2.append({"c": c, "weights": model.coef_[0].tolist(), "bias": float(model.intercept_[0])})

eq6 = []
for target in (1e-4, 0.03, 0.2, 0.5, 0.97):
    z = (x @ np.array([2.0, -1.0, 0.5, 0.0, 3.0])).round(6)
    bias = brentq(lambda b: expit(z + b).mean() - target, -60, 60, xtol=1e-14, rtol=1e-14)
    eq6.append({"target": target, "logits": z.tolist(), "bias": bias})

eq7 = []
w0, b0 = np.array([0.5, 0.5, -0.5, 0.0, 1.0]), -0.3
for lam in (0.01, 1.0, 30.0):
    def objective(t):
        z = x @ t[:-1] + t[-1]
        loss = np.logaddexp(0, z).sum() - (y * z).sum()
        away = 0.5 * lam * ((t[:-1] - w0) ** 2).sum() + 0.5 * 2.0 * (t[-1] - b0) ** 2
        grad_z = expit(z) - y
        grad = np.append(x.T @ grad_z + lam * (t[:-1] - w0), grad_z.sum() + 2.0 * (t[-1] - b0))
        return loss + away, grad

    best = minimize(objective, np.append(w0, b0), jac=True, method="BFGS", options={"gtol": 1e-10})
    z = x @ best.x[:-1] + best.x[-1]
    design = np.hstack([x, np.ones((rows, 1))])
    hessian = design.T @ (design * (expit(z) * (1 - expit(z)))[:, None])
    hessian += np.diag([lam] * width + [2.0])
    eq7.append({
        "precision": lam,
        "weights": best.x[:-1].tolist(),
        "bias": float(best.x[-1]),
        "sd": np.sqrt(np.diag(np.linalg.inv(hessian)))[:-1].tolist(),
    })

embeddings = rng.normal(size=(12, 4))
embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
targets = embeddings @ rng.normal(size=(4, 3)) + 0.3 * rng.normal(size=(12, 3))
mean = targets.mean(axis=0)
held_out = {}
for penalty in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0):
    predicted = []
    for i in range(12):
        others = [j for j in range(12) if j != i]
        model = Ridge(alpha=penalty, fit_intercept=False)
        model.fit(embeddings[others], (targets - mean)[others])
        predicted.append(model.predict(embeddings[i : i + 1])[0] + mean)
    held_out[penalty] = np.array(predicted)
errors = {p: ((v - targets) ** 2).sum() for p, v in held_out.items()}
penalty = min(errors, key=errors.get)
full = Ridge(alpha=penalty, fit_intercept=False).fit(embeddings, targets - mean)
new = np.array([0.5, -0.5, 0.5, 0.5])

p = expit(x @ np.array(eq2[1]["weights"]) + eq2[1]["bias"])
json.dump(
    {
        "made_with": {
            "numpy": np.__version__, "scipy": scipy.__version__, "scikit-learn": sklearn.__version__,
        },
        "features": x.tolist(),
        "labels": y.tolist(),
        "eq2": eq2,
        "eq6": eq6,
        "eq7": {"prior_weights": w0.tolist(), "prior_bias": b0, "bias_precision": 2.0, "cases": eq7},
        "ridge": {
            "embeddings": embeddings.tolist(),
            "targets": targets.tolist(),
            "penalty": penalty,
            "leave_one_out": held_out[penalty].tolist(),
            "new": new.tolist(),
            "predicted": (full.predict(new[None])[0] + mean).tolist(),
        },
        "metrics": {"auc": roc_auc_score(y, p), "log_loss": log_loss(y, p)},
    },
    sys.stdout,
    indent=1,
)

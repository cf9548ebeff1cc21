"""numpy's side of examples/score_bench.rs: same cases, one line `CASE SECONDS` in, one of JSON out.

gemm:USERS:ADS:FEATURES           np.matmul into a buffer
probabilities:USERS:ADS:FEATURES  gemm, then + b and 1 / (1 + exp(-z)) in place

Threads come from OPENBLAS_NUM_THREADS; numpy's elementwise functions use one thread.
"""

import json
import resource
import statistics
import sys
import time

import numpy as np


def build(case):
    name, *sizes = case.split(":")
    if name not in ("gemm", "probabilities") or len(sizes) != 3:
        raise ValueError(f"unknown case {case}")
    users, ads, features = map(int, sizes)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((users, features), dtype=np.float32)
    w = rng.standard_normal((features, ads), dtype=np.float32)
    b = np.full(ads, -1.0, dtype=np.float32)
    out = np.zeros((users, ads), dtype=np.float32)

    def run():
        np.matmul(x, w, out=out)
        if name == "probabilities":
            np.add(out, b, out=out)
            np.negative(out, out=out)
            np.exp(out, out=out)
            np.add(out, 1.0, out=out)
            np.reciprocal(out, out=out)

    return run


def measure(run, seconds):
    wall, start, cpu = [], time.perf_counter(), time.process_time()
    while len(wall) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        run()
        wall.append(1e3 * (time.perf_counter() - begin))
    return {
        "runs": len(wall),
        "wall_min_ms": min(wall),
        "wall_median_ms": statistics.median(wall),
        "cpu_median_ms": 1e3 * (time.process_time() - cpu) / len(wall),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


current = None
for line in sys.stdin:
    words = line.split()
    if not words:
        continue
    try:
        if current is None or current[0] != words[0]:
            current = None
            run = build(words[0])
            run()
            current = words[0], run
        reply = {"case": words[0], **measure(current[1], float(words[1]))}
    except (ValueError, IndexError) as problem:
        reply = {"case": words[0], "error": str(problem)}
    print(json.dumps(reply), flush=True)

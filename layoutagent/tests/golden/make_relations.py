"""The table of the 13 relations (specification 3.3) written a second time, on 10,000 random layouts.

Plain Python 3, no packages: python make_relations.py > relations.json. Layouts come from the integer
generator below, which the test repeats, so only checksums are stored.
"""

import json
import math

MASK = (1 << 64) - 1


def draws():
    state = 2024
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        yield (state >> 33) / 2**31


def layouts(count):
    u = draws()
    for _ in range(count):
        yield [(3.4 * next(u) - 1.7, 2.4 * next(u) - 1.2, 0.15 + 1.1 * next(u), 0.15 + 0.8 * next(u)) for _ in range(3)]


def overlap(c1, s1, c2, s2):
    return min(c1 + s1 / 2, c2 + s2 / 2) - max(c1 - s1 / 2, c2 - s2 / 2)


def unary(k, b):
    x, y, w, h = b
    if k == 0:
        return abs(x) + w / 2 <= 1.5 and abs(y) + h / 2 <= 1.0
    if k == 1:
        return math.sqrt(x * x + y * y) < 0.3
    return [x + w / 2 < 0, x - w / 2 > 0, y - h / 2 > 0, y + h / 2 < 0][k - 2]


def neighbour(a, b, axis, below):
    """a left of (axis 0) or below (axis 1) b: the other ranges overlap, the gap is in [-0.05, below)."""
    other = 1 - axis
    if overlap(a[other], a[other + 2], b[other], b[other + 2]) <= 0.6 * min(a[other + 2], b[other + 2]):
        return False
    gap = (b[axis] - b[axis + 2] / 2) - (a[axis] + a[axis + 2] / 2)
    return -0.05 <= gap < below


def binary(k, a, b):
    any_side = lambda below: any(neighbour(p, q, axis, below) for p, q in ((a, b), (b, a)) for axis in (0, 1))
    if k == 6:
        return overlap(a[0], a[2], b[0], b[2]) <= 0 or overlap(a[1], a[3], b[1], b[3]) <= 0
    if k == 7:
        return neighbour(a, b, 0, 0.3)
    if k == 8:
        return neighbour(b, a, 1, 0.3)
    if k == 9:
        return any_side(0.1)
    if k == 10:
        return not any_side(0.5)
    return abs(a[1] - b[1]) < 0.05 if k == 11 else abs(a[0] - b[0]) < 0.05


def main():
    counts, blocks, fold = [0] * 13, [], 0xCBF29CE484222325
    for number, boxes in enumerate(layouts(10_000), 1):
        for k in range(13):
            if k < 6:
                answers = [unary(k, b) for b in boxes]
            else:
                answers = [binary(k, boxes[i], boxes[j]) for i in range(3) for j in range(3) if i != j]
            for answer in answers:
                counts[k] += answer
                fold = ((fold ^ (2 * k + answer)) * 0x100000001B3) & MASK
        if number % 100 == 0:
            blocks.append(f"{fold:016x}")
    print(json.dumps({"counts": counts, "checksums_per_100": blocks}, indent=0))


if __name__ == "__main__":
    main()

"""PyTorch peer of `examples/generator_bench.rs`: decoding and training steps on the CPU.

    python alternate.py --threads 2 --a 'generator_bench 2' --b 'python torch_crab.py 2' \
        decode:10 generator rqvae

Speaks the protocol of `common::testing::bench_protocol` (a line `CASE SECONDS` in, a line of JSON
out). `decode:BEAMS` is constrained beam search as transformers does it: a GPT-2 of the same size,
`generate` with `prefix_allowed_tokens_fn` that looks the prefix up in a dictionary.
"""

import json
import resource
import statistics
import sys
import time

import torch

from torch_generator import Generator, RqVae

ITEMS, LEVELS = 3686, 4


def table() -> list[list[int]]:
    """The semantic IDs of the Rust side."""
    rows, seen = [], {}
    for item in range(ITEMS):
        code = item * 2654435761 % 2**32
        row = [code >> 26, code >> 22 & 15, code >> 18 & 15]
        number = seen.get(tuple(row), 0)
        seen[tuple(row)] = number + 1
        rows.append([*row, number])
    return rows


ROWS = table()
SIZES = [max(row[level] for row in ROWS) + 1 for level in range(LEVELS)]
OFFSETS = [1 + sum(SIZES[:level]) for level in range(LEVELS)]


def item(row: int, at: int) -> int:
    return (row * 9 + at) * 37 % ITEMS


def decode(beams: int):
    from transformers import GPT2Config, GPT2LMHeadModel

    start, end = 0, OFFSETS[-1] + SIZES[-1]
    config = GPT2Config(
        vocab_size=end + 1, n_positions=64, n_embd=128, n_layer=2, n_head=4, n_inner=256,
        bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )
    model = GPT2LMHeadModel(config).eval()
    flat = [[OFFSETS[level] + row[level] for level in range(LEVELS)] for row in ROWS]
    children: dict[tuple[int, ...], set[int]] = {}
    for row in flat:
        for level in range(LEVELS):
            children.setdefault(tuple(row[:level]), set()).add(row[level])
    allowed = {prefix: sorted(codes) for prefix, codes in children.items()}
    prompts = torch.tensor(
        [[start, *(token for at in range(9) for token in flat[item(row, at)])] for row in range(256)]
    )
    length = prompts.shape[1]

    def follow(_: int, ids: torch.Tensor) -> list[int]:
        return allowed.get(tuple(ids[length:].tolist()), [end])

    def run() -> None:
        with torch.inference_mode():
            for part in prompts.split(64):
                model.generate(
                    part, attention_mask=torch.ones_like(part), max_new_tokens=LEVELS,
                    num_beams=beams, num_return_sequences=beams, do_sample=False,
                    length_penalty=0.0, prefix_allowed_tokens_fn=follow,
                )

    return run


def generator():
    model = Generator(SIZES, width=128, layers=2, heads=4, inner=256, dropout=0.2, history=9).train()
    windows = torch.tensor([[ROWS[item(row, at)] for at in range(10)] for row in range(64)])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def run() -> None:
        optimiser.zero_grad()
        model(windows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return run


def rqvae():
    model, items = RqVae([384, 256, 128, 32], [64] * 3), torch.randn(1024, 384)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def run() -> None:
        optimiser.zero_grad()
        model(items).backward()
        optimiser.step()

    return run


def build(name: str):
    kind, _, number = name.partition(":")
    if kind == "decode":
        return decode(int(number))
    return {"generator": generator, "rqvae": rqvae}[kind]()


def measure(run, seconds: float) -> dict:
    walls, cpu, start = [], time.process_time(), time.perf_counter()
    while len(walls) < 3 or time.perf_counter() - start < seconds:
        if walls and time.perf_counter() - start > 4 * seconds:
            break
        begin = time.perf_counter()
        run()
        walls.append((time.perf_counter() - begin) * 1e3)
    return {
        "runs": len(walls),
        "wall_min_ms": min(walls),
        "wall_median_ms": statistics.median(walls),
        "cpu_median_ms": (time.process_time() - cpu) / len(walls) * 1e3,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    torch.manual_seed(0)
    name, run = None, None
    for line in sys.stdin:
        case, seconds = line.split()
        try:
            if case != name:
                name, run = case, build(case)
                run()
            answer = {"case": case, **measure(run, float(seconds))}
        except Exception as problem:  # the protocol's way to refuse
            answer = {"case": case, "error": str(problem)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

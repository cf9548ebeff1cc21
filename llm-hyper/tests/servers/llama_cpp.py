"""`generate` with only --llm changed, against llama.cpp's OpenAI-compatible server.

    python -m venv VENV && VENV/bin/pip install 'llama-cpp-python[server]'      # or: xllamacpp
    VENV/bin/python tests/servers/llama_cpp.py --binary target/release/llm-hyper --model MODEL.gguf

Runs the sample with `gguf:`, then with `openai:` while recording, then `replay:` of that recording,
and checks what must hold. Prints one line per step; exit status 1 when a check fails.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

SAMPLE = pathlib.Path(__file__).resolve().parents[2] / "sample"
SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 8192, 1, 2
server = xllamacpp.Server(params)
while True:
    time.sleep(1)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(model, port):
    installed = {package.name for package in importlib.metadata.distributions()}
    if "llama_cpp_python" in installed or "llama-cpp-python" in installed:
        command = [sys.executable, "-m", "llama_cpp.server", "--model", model, "--port", str(port)]
        command += ["--n_ctx", "8192", "--n_threads", "2"]
    else:
        command = [sys.executable, "-c", SERVE, model, str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if server.poll() is not None:
            sys.exit(f"the server ended with status {server.returncode}: {command[:3]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2) as reply:
                if reply.status == 200:
                    return server
        except OSError:
            time.sleep(0.5)
    server.kill()
    sys.exit("the server did not answer within ten minutes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, type=pathlib.Path)
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    binary = str(arguments.binary.resolve())
    failures = []

    def check(holds, text):
        print(("ok      " if holds else "FAILED  ") + text, flush=True)
        failures.extend([] if holds else [text])

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for file in SAMPLE.iterdir():
            shutil.copy(file, folder)

        def run(*words):
            done = subprocess.run([binary, *words], cwd=folder, capture_output=True, text=True)
            if done.returncode != 0:
                check(False, f"{' '.join(words)}: status {done.returncode}: {done.stderr[-600:]}")
            return done.stdout

        def generate(llm, out, *more):
            begin = time.perf_counter()
            text = run(
                "generate", "new_ads.csv", "--json", "--llm", llm, "--artefacts", out, *more,
                "--set", "writer.allowed_fallback=1.0",
                # the server answers one request at a time
                "--set", "writer.in_flight=1", "--set", "writer.max_tokens=512",
                "--set", "writer.attempt_seconds=1200", "--set", "writer.budget_seconds=2400",
            )
            seconds = time.perf_counter() - begin
            tally = json.loads(text)["tally"] if text else {}
            lines = (folder / out).read_text().splitlines() if (folder / out).exists() else []
            artefacts = [json.loads(line) for line in lines]
            finite = all(math.isfinite(w) for a in artefacts for w in [*a["weights"], a["bias"]])
            check(len(artefacts) == 3 and finite, f"{llm}: {len(artefacts)} artefacts, all finite")
            sources = [a["source"] for a in artefacts]
            reasons = sum(len(a["reasoning"]) for a in artefacts)
            print(f"        {sources}, {tally}, {reasons} reasons, {seconds:.1f} s")
            return artefacts, tally

        run("fit", "ads.csv", "impressions.csv")
        local, _ = generate(f"gguf:{arguments.model}", "local.jsonl")
        check(all(a["source"] == "llm" for a in local), "the local model wrote every ad")
        port = free_port()
        server = start(arguments.model, port)
        try:
            spec = f"openai:http://127.0.0.1:{port}/v1#smollm2"
            served, tally = generate(spec, "served.jsonl", "--record", "recorded.jsonl")
            usable = tally.get("weights", 0) - tally.get("unusable", 0)
            check(usable > 0, f"the server wrote {usable} of {tally.get('weights')} weights")
        finally:
            server.terminate()
            server.wait()
        replayed, again = generate("replay:recorded.jsonl", "replayed.jsonl", "--offline")
        same = [a["weights"] for a in served] == [a["weights"] for a in replayed]
        check(bool(served) and same and tally == again, "the recording gives the same weights")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

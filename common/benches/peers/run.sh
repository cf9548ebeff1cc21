#!/bin/sh
# Training against PyTorch, the tables of docs/PERFORMANCE.md: run.sh [THREADS] [CASE...]
# PYTHON names an interpreter with torch. Every case runs in fresh processes, so that the peak memory is its own.
set -eu
cd "$(dirname "$0")/../../.."
threads=${1:-1}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- gpt rqvae unet layer_norm_bwd softmax_bwd gelu_bwd cross_entropy_bwd \
    conv3x3:32:32:32:32 conv3x3_bwd:32:32:32:32 gpt:64:64 gpt:128:128 gpt:256:128 gpt:512:128 gpt:64:256 gpt:128:512
cargo build --release -p common --features testing --example train_bench
python=${PYTHON:-python3}
exec "$python" common/benches/peers/alternate.py --threads "$threads" --rounds "${ROUNDS:-5}" \
    --seconds "${SECONDS_A_ROUND:-1}" --fresh \
    --a "target/release/examples/train_bench --threads $threads" \
    --b "$python common/benches/peers/torch_train.py --threads $threads" "$@"

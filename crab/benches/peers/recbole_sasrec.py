"""RecBole's SASRec on ml-100k under the protocol of `crab bench`: leave-one-out by time, ranking of
the full catalogue, items of the history left out.

    pip install recbole==1.2.1 torch       # an environment of its own
    python recbole_sasrec.py --rates 1e-3 2e-3 --dropouts 0.2 0.5 --seeds 0

Ties in time stay in the order of the file, as on the Rust side: the events are written again with
their rank as time. The setting with the best validation NDCG@10 is the one to compare with.
"""

import argparse
import collections
import json
import os
import pathlib
import tempfile
import time

import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


def write_ordered(folder: pathlib.Path) -> None:
    source = pathlib.Path(recbole.__file__).parent / "dataset_example/ml-100k/ml-100k.inter"
    users = collections.defaultdict(list)
    for line in source.read_text().splitlines()[1:]:
        user, item, _, when = line.split("\t")
        users[user].append((float(when), item))
    target = folder / "ml-100k"
    target.mkdir()
    with open(target / "ml-100k.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, events in users.items():
            events.sort(key=lambda event: event[0])  # stable
            for rank, (_, item) in enumerate(events):
                file.write(f"{user}\t{item}\t{rank}\n")


def run(folder: pathlib.Path, options: argparse.Namespace, rate: float, dropout: float, seed: int) -> dict:
    settings = {
        "data_path": str(folder), "checkpoint_dir": str(folder / "saved"), "use_gpu": False,
        "seed": seed, "show_progress": False, "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 50, "train_neg_sample_args": None, "loss_type": "CE",
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
        "metrics": ["NDCG", "Hit"], "topk": [10], "valid_metric": "NDCG@10", "metric_decimal_place": 6,
        "learning_rate": rate, "hidden_dropout_prob": dropout, "attn_dropout_prob": dropout,
        "train_batch_size": options.batch, "epochs": options.epochs, "stopping_step": options.patience,
    }
    config = Config(model="SASRec", dataset="ml-100k", config_dict=settings)
    init_seed(seed, True)
    train, valid, test = data_preparation(config, create_dataset(config))
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    clock, cpu = time.perf_counter(), time.process_time()

    def said(epoch: int, score: float) -> None:
        print(json.dumps({"epoch": epoch, "validation": score, "cpu": time.process_time() - cpu}), flush=True)

    _, best = trainer.fit(train, valid, saved=True, show_progress=False, callback_fn=said)
    result = trainer.evaluate(test, load_best_model=True, show_progress=False)
    return {
        "rate": rate, "dropout": dropout, "seed": seed, "batch": options.batch,
        "validation": dict(best), "test": dict(result),
        "seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        os.chdir(folder)  # RecBole leaves logs where it runs
        write_ordered(folder)
        for rate in options.rates:
            for dropout in options.dropouts:
                for seed in options.seeds:
                    print(json.dumps(run(folder, options, rate, dropout, seed)), flush=True)


if __name__ == "__main__":
    main()

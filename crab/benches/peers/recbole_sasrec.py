"""RecBole's SASRec on ml-100k under the protocol of `crab bench`: leave-one-out by time, ranking of
the full catalogue. RecBole's own numbers (`validation`, `test`) leave the items of the history in;
`without_history` leaves them out as `crab bench` does.

    pip install recbole==1.2.1 torch       # an environment of its own
    python recbole_sasrec.py --rates 1e-3 2e-3 --dropouts 0.2 0.5 --seeds 0

Ties in time stay in the order of the file, as on the Rust side: the events are written again with
their rank as time. The setting with the best validation NDCG@10 is the one to compare with.

With `--candidates RUN/candidates-0.jsonl ...`, the lists that `tmf bench` writes, the same model also
ranks each user's list. `--hits FILE` keeps who was a hit, one JSON line a list.
"""

import argparse
import collections
import json
import math
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


def read_histories(folder: pathlib.Path) -> dict:
    items = collections.defaultdict(list)
    for line in (folder / "ml-100k/ml-100k.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        items[user].append(item)
    return items


def score_all(model: SASRec, test, dataset, histories: dict) -> tuple[dict, dict]:
    """Scores of all items for each user's test question, and NDCG@10 and HR@10 of the full ranking with
    the items of the user's history left out, which RecBole's own evaluation of sequence models keeps."""
    scores, ranks = {}, []
    model.eval()
    with torch.no_grad():
        for batch in test:
            interaction = batch[0]
            rows = model.full_sort_predict(interaction.to(model.device)).view(len(interaction), -1).cpu()
            users = dataset.id2token("user_id", interaction["user_id"].numpy())
            for at, (user, row) in enumerate(zip(users, rows)):
                scores[user] = row
                fresh, target = row.clone(), int(interaction["item_id"][at])
                fresh[torch.as_tensor(dataset.token2id("item_id", histories[user][:-1]))] = -torch.inf
                fresh[0] = -torch.inf  # padding
                ranks.append(int((fresh >= row[target]).sum()))
    hits = [rank <= 10 for rank in ranks]
    gain = [1 / math.log2(1 + rank) if rank <= 10 else 0.0 for rank in ranks]
    return scores, {"ndcg@10": sum(gain) / len(gain), "hit@10": sum(hits) / len(hits)}


def rank_candidates(scores: dict, dataset, files: list[str]) -> dict:
    """HR@1, HR@5 and NDCG@5 of each file of candidate lists, and the hits at 1 by user."""
    found = {}
    for file in files:
        ranks = {}
        for line in pathlib.Path(file).read_text().splitlines():
            asked = json.loads(line)
            ids = dataset.token2id("item_id", [i if i in dataset.field2token_id["item_id"] else "[PAD]" for i in asked["items"]])
            values = scores[asked["user"]][torch.as_tensor(ids)].clone()
            values[torch.as_tensor(ids) == 0] = -torch.inf  # an item that nobody rated in training
            own = values[asked["items"].index(asked["positive"])]
            ranks[asked["user"]] = int((values >= own).sum())
        hits = torch.tensor([rank == 1 for rank in ranks.values()]).double()
        gain = torch.tensor([1 / math.log2(1 + rank) if rank <= 5 else 0.0 for rank in ranks.values()])
        found[pathlib.Path(file).name] = {
            "users": len(ranks), "hr@1": hits.mean().item(),
            "hr@5": sum(rank <= 5 for rank in ranks.values()) / len(ranks), "ndcg@5": gain.mean().item(),
            "hits": {user: int(rank == 1) for user, rank in ranks.items()},
        }
    return found


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
    scores, fresh = score_all(model, test, train.dataset, read_histories(folder))
    lists = rank_candidates(scores, train.dataset, options.candidates)
    if options.hits:
        with open(options.hits, "a") as file:
            for name, each in lists.items():
                entry = {"rate": rate, "dropout": dropout, "seed": seed, "list": name, "hits": each["hits"]}
                file.write(json.dumps(entry) + "\n")
    return {
        "lists": {name: {key: each[key] for key in each if key != "hits"} for name, each in lists.items()},
        "rate": rate, "dropout": dropout, "seed": seed, "batch": options.batch, "without_history": fresh,
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
    parser.add_argument("--candidates", nargs="*", default=[])
    parser.add_argument("--hits")
    options = parser.parse_args()
    options.candidates = [str(pathlib.Path(file).resolve()) for file in options.candidates]
    options.hits = options.hits and str(pathlib.Path(options.hits).resolve())
    torch.set_num_threads(options.threads)
    torch.autograd.set_detect_anomaly(False)  # importing RecBole's models switches it on: 1.6 times the time
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

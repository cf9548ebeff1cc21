"""Writes the sample's CSV files: invented ads of a garden and gadget shop, invented visitors, clicks
drawn from the weights below. Standard library only: python make_sample.py
"""

import csv
import math
import random

FEATURES = ["age_18_34", "age_55_plus", "likes_gardening", "likes_gadgets", "bargain_hunter", "visits"]
# Title, description, campaign, true weights of the features.
PAST = [
    ("Rose bushes for your garden", "Ten varieties, delivered with roots", "spring", (-0.6, 0.7, 1.6, -0.3, 0.0, 0.2)),
    ("Electric lawn mower", "Quiet, cordless, 40 minutes a charge", "spring", (-0.2, 0.4, 1.1, 0.7, 0.0, 0.1)),
    ("Herb garden for the window sill", "Basil, mint and thyme from seed", "", (0.3, 0.1, 1.3, 0.0, 0.2, 0.1)),
    ("Garden tools at half price", "Spades, rakes and shears, this week only", "clearance", (-0.1, 0.3, 1.2, -0.1, 1.3, 0.2)),
    ("Compost bin made of oak", "For kitchen scraps and leaves", "", (-0.4, 0.6, 1.4, -0.2, 0.0, 0.1)),
    ("Wireless headphones", "Noise cancelling, 30 hours of music", "", (1.1, -0.8, -0.2, 1.4, 0.0, 0.2)),
    ("Smart watch with GPS", "Counts steps and sleep", "", (0.7, -0.3, -0.2, 1.5, 0.0, 0.1)),
    ("Gaming mouse, 25 % off", "Eleven buttons and a light", "clearance", (1.4, -0.9, -0.4, 1.2, 0.9, 0.2)),
    ("Drone with camera", "Films your garden from above", "", (0.5, 0.0, 0.3, 1.6, -0.2, 0.1)),
    ("Phone cases, three for two", "All models of this year", "clearance", (0.9, -0.4, -0.2, 0.8, 1.2, 0.2)),
]
NEW = [
    ("Tulip bulbs, buy two, get one free", "Plant in autumn, enjoy in spring"),
    ("Robot that mows the lawn", "Controlled by an app"),
    ("Earbuds for running", "Sweat-proof, in five colours"),
]

draw = random.Random(5)


def person():
    age = draw.random()
    return [
        int(age < 0.35),
        int(age > 0.7),
        int(draw.random() < 0.4),
        int(draw.random() < 0.4),
        int(draw.random() < 0.3),
        min(9, int(draw.expovariate(0.4))),
    ]


def write(name, header, rows):
    with open(name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


people = [person() for _ in range(150)]
rows = []
for ad, (*_, weights) in enumerate(PAST):
    for user in draw.sample(range(len(people)), 60):
        x = people[user]
        scaled = [*x[:5], (x[5] - 2) / 2]
        z = sum(w * v for w, v in zip(weights, scaled, strict=True)) - 1.1
        rows.append([f"past{ad}", f"u{user}", int(draw.random() < 1 / (1 + math.exp(-z))), *x])
ads = [[f"past{ad}", *texts] for ad, (*texts, _) in enumerate(PAST)]
write("ads.csv", ["id", "title", "description", "campaign"], ads)
write("impressions.csv", ["ad", "user", "clicked", *FEATURES], rows)
new = [[f"new{ad}", *texts] for ad, texts in enumerate(NEW)]
write("new_ads.csv", ["id", "title", "description"], new)
write("users.csv", ["user", *FEATURES], [[f"u{user}", *x] for user, x in enumerate(people[:12])])

//! A synthetic multi-behaviour catalogue whose truth is known: exactly one modality, or the
//! behaviours, tell what will be bought.
//!
//! Each item has a picture (a coloured shape), a description (with a material) and links to graph
//! nodes (a workshop). Each of the three attributes has [`VALUES`] values. A user buys an item that
//! shares one attribute, the signal, with what they touched before; the other two attributes are
//! drawn at random. Test users see items of which training knows nothing, and titles are made-up words
//! that many items share, so titles and co-occurrence can't help.

use common::rng::{Seed, Stream};

use super::{Dataset, Item, Step};

/// Values of each attribute.
pub const VALUES: usize = 8;
/// Behaviours: view, cart, buy.
pub const BEHAVIOURS: [&str; 3] = ["view", "cart", "buy"];
/// Candidates of a test question: one with the right value, all others with another.
pub const CANDIDATES: usize = 8;

/// Different titles.
const TITLES: usize = 160;
const COLOURS: [[u8; 3]; VALUES] = [
    [214, 40, 40],
    [245, 145, 30],
    [240, 220, 50],
    [50, 160, 70],
    [60, 190, 210],
    [40, 80, 200],
    [140, 60, 180],
    [110, 75, 45],
];
const MATERIALS: [&str; VALUES] =
    ["cotton", "leather", "steel", "bamboo", "glass", "wool", "ceramic", "linen"];
const FILLER: [&str; 12] = [
    "new", "daily", "light", "classic", "small", "large", "gift", "home", "outdoor", "simple",
    "handy", "series",
];

/// What tells the purchase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    /// The colour in the picture.
    Image,
    /// The material in the description.
    Text,
    /// The workshop that the item is linked to.
    Graph,
    /// The attributes (all three agree) of what was put into the cart; views mislead.
    Behaviour,
}

impl Signal {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Image, Self::Text, Self::Graph, Self::Behaviour];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Text => "text",
            Self::Graph => "graph",
            Self::Behaviour => "behaviour",
        }
    }
}

/// A drawn picture: a shape on a pale ground.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawing {
    /// 0 disc, 1 square, 2 diamond.
    pub shape: usize,
    /// Colour of the shape.
    pub colour: [u8; 3],
    /// Shade of the ground.
    pub ground: u8,
    /// Centre and radius as shares of the side.
    pub place: [f64; 3],
}

impl Drawing {
    /// RGB pixels row by row.
    pub fn pixels(&self, side: usize) -> Vec<u8> {
        let [cx, cy, radius] = self.place;
        let mut rgb = Vec::with_capacity(3 * side * side);
        for y in 0..side {
            for x in 0..side {
                let dx = ((x as f64 + 0.5) / side as f64 - cx).abs();
                let dy = ((y as f64 + 0.5) / side as f64 - cy).abs();
                let inside = match self.shape {
                    0 => dx * dx + dy * dy < radius * radius,
                    1 => dx.max(dy) < 0.85 * radius,
                    _ => dx + dy < 1.2 * radius,
                };
                rgb.extend(if inside { self.colour } else { [self.ground; 3] });
            }
        }
        rgb
    }
}

/// The catalogue with its truth.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// Items, training users and their sequences; the target is "buy".
    pub data: Dataset,
    /// One drawing per item.
    pub drawings: Vec<Drawing>,
    /// Colour, material and workshop of each item.
    pub attributes: Vec<[usize; 3]>,
    /// Items of the training users; the others are cold.
    pub warm: Vec<u32>,
    /// Questions of the test users.
    pub tests: Vec<Test>,
}

/// A test user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// Events before the purchase.
    pub history: Vec<Step>,
    /// Candidates in prompt order.
    pub items: Vec<u32>,
    /// Where the purchase stands.
    pub positive: usize,
}

/// Sizes of a catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Items that training users touch.
    pub warm: usize,
    /// Items of the test users.
    pub cold: usize,
    /// Training users.
    pub users: usize,
    /// Test users.
    pub tests: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { warm: 600, cold: 300, users: 4000, tests: 400 }
    }
}

/// Generates a catalogue. The same signal, sizes and seed give the same catalogue. Warm and cold
/// items should number at least eight per value of an attribute.
pub fn generate(signal: Signal, sizes: Sizes, seed: Seed) -> Catalogue {
    let mut stream = seed.stream(&format!("catalogue/{}", signal.name()));
    let count = sizes.warm + sizes.cold;
    let attributes: Vec<[usize; 3]> = (0..count)
        .map(|_| {
            let mut drawn = [0; 3].map(|_: usize| stream.below(VALUES));
            if signal == Signal::Behaviour {
                drawn = [drawn[0]; 3];
            }
            drawn
        })
        .collect();
    let titles = titles(count, &mut stream);
    let mut drawings = Vec::with_capacity(count);
    let mut items = Vec::with_capacity(count);
    let mut links = Vec::new();
    for (at, attribute) in attributes.iter().enumerate() {
        let colour = COLOURS[attribute[0]]
            .map(|v| (f64::from(v) + 12.0 * stream.normal()).clamp(0.0, 255.0) as u8);
        drawings.push(Drawing {
            shape: stream.below(3),
            colour,
            ground: 225 + stream.below(25) as u8,
            place: [
                0.4 + 0.2 * stream.uniform(),
                0.4 + 0.2 * stream.uniform(),
                0.25 + 0.12 * stream.uniform(),
            ],
        });
        let mut words: Vec<&str> = (0..4).map(|_| FILLER[stream.below(FILLER.len())]).collect();
        words.insert(stream.below(words.len() + 1), MATERIALS[attribute[1]]);
        items.push(Item {
            id: format!("item-{at}"),
            title: titles[at].clone(),
            text: words.join(" "),
            image: None,
        });
        // each workshop has three nodes, of which an item is linked to two
        for node in stream.sample(3, 2) {
            links.push((at as u32, (3 * attribute[2] + node) as u32));
        }
    }
    let which = match signal {
        Signal::Image | Signal::Behaviour => 0,
        Signal::Text => 1,
        Signal::Graph => 2,
    };
    let by_value = |from: usize, to: usize| -> Vec<Vec<u32>> {
        let mut groups = vec![Vec::new(); VALUES];
        for item in from..to {
            groups[attributes[item][which]].push(item as u32);
        }
        groups
    };
    let warm = by_value(0, sizes.warm);
    let cold = by_value(sizes.warm, count);
    let mut sequences = Vec::with_capacity(sizes.users);
    for _ in 0..sizes.users {
        let (mut history, wanted, _) = history(signal, &warm, &mut stream);
        let bought = pick(&warm[wanted], &history, &mut stream);
        history.push(Step { item: bought, behaviour: 2 });
        sequences.push(history);
    }
    let mut tests = Vec::with_capacity(sizes.tests);
    for _ in 0..sizes.tests {
        let (history, wanted, misleading) = history(signal, &cold, &mut stream);
        let answer = pick(&cold[wanted], &history, &mut stream);
        let mut items = vec![answer];
        while items.len() < CANDIDATES {
            // two of the candidates look like what was only viewed
            let value = match misleading {
                Some(value) if items.len() < 3 => value,
                _ => stream.below(VALUES),
            };
            if value == wanted || cold[value].len() <= history.len() {
                continue;
            }
            let item = pick(&cold[value], &history, &mut stream);
            let title = |item: u32| &titles[item as usize];
            if items.iter().all(|&other| title(other) != title(item)) {
                items.push(item);
            }
        }
        stream.shuffle(&mut items);
        let positive = items.iter().position(|&item| item == answer).unwrap_or(0);
        tests.push(Test { history, items, positive });
    }
    let data = Dataset {
        name: format!("synthetic, signal in {}", signal.name()),
        items,
        users: (0..sizes.users).map(|user| format!("user-{user}")).collect(),
        behaviours: BEHAVIOURS.map(str::to_owned).to_vec(),
        target: Some(2),
        sequences,
        links,
    };
    Catalogue { data, drawings, attributes, warm: (0..sizes.warm as u32).collect(), tests }
}

/// Events before a purchase, the value that will be bought, and the one that misleads.
fn history(
    signal: Signal,
    groups: &[Vec<u32>],
    stream: &mut Stream,
) -> (Vec<Step>, usize, Option<usize>) {
    let full: Vec<usize> = (0..VALUES).filter(|&value| groups[value].len() > 4).collect();
    let wanted = full[stream.below(full.len())];
    let mut steps: Vec<Step> = Vec::new();
    let mut misleading = None;
    if signal == Signal::Behaviour {
        let others: Vec<usize> = full.iter().copied().filter(|&value| value != wanted).collect();
        let other = others[stream.below(others.len())];
        misleading = Some(other);
        for (value, behaviour) in [(wanted, 1), (wanted, 1), (other, 0), (other, 0)] {
            let item = pick(&groups[value], &steps, stream);
            steps.push(Step { item, behaviour });
        }
        stream.shuffle(&mut steps);
    } else {
        for _ in 0..3 {
            let item = pick(&groups[wanted], &steps, stream);
            steps.push(Step { item, behaviour: stream.below(2) as u32 });
        }
    }
    (steps, wanted, misleading)
}

/// An item of the group that is not in the history.
fn pick(group: &[u32], history: &[Step], stream: &mut Stream) -> u32 {
    loop {
        let item = group[stream.below(group.len())];
        if !history.iter().any(|step| step.item == item) {
            return item;
        }
    }
}

/// A title per item, drawn from [`TITLES`] made-up words: several items share one, so a title tells
/// nothing about its item.
fn titles(count: usize, stream: &mut Stream) -> Vec<String> {
    let syllables: Vec<String> = "bdgklmrt"
        .chars()
        .flat_map(|consonant| "aeiou".chars().map(move |vowel| format!("{consonant}{vowel}")))
        .collect();
    let all = syllables.len();
    let words: Vec<String> = stream
        .sample(all * all, TITLES)
        .into_iter()
        .map(|at| format!("{}{}", syllables[at / all], syllables[at % all]))
        .collect();
    (0..count).map(|_| words[stream.below(TITLES)].clone()).collect()
}

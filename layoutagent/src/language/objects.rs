//! Known objects: words, real-world sizes, pictures (`objects.tsv`).

use std::sync::OnceLock;

/// One kind of object.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// Width and height of a common specimen in metres.
    pub size_m: [f64; 2],
    /// Name of its emoji; `-table` is drawn as a table, `-` as a plain box.
    pub picture: &'static str,
    /// Other words for it.
    pub synonyms: Vec<&'static str>,
}

/// The table, in file order.
pub fn table() -> &'static [Known] {
    static TABLE: OnceLock<Vec<Known>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let rows = include_str!("objects.tsv").lines().filter(|line| !line.starts_with('#'));
        rows.filter_map(|line| {
            let mut cells = line.split('\t');
            Some(Known {
                name: cells.next()?,
                size_m: [cells.next()?.parse().ok()?, cells.next()?.parse().ok()?],
                picture: cells.next()?,
                synonyms: cells.next()?.split(',').filter(|word| !word.is_empty()).collect(),
            })
        })
        .collect()
    })
}

/// The object of that name, synonym or simple plural.
pub fn find(word: &str) -> Option<&'static Known> {
    let word = word.trim().to_lowercase();
    let exact = |word: &str| {
        table().iter().find(|known| known.name == word || known.synonyms.contains(&word))
    };
    exact(&word).or_else(|| exact(word.strip_suffix('s')?))
}

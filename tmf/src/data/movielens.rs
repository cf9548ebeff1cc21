//! ML-100k as three behaviours: dislike (1–2 stars), neutral (3), like (4–5), as KHGT does.

use std::collections::HashMap;

use common::Result;
use common::assets::Assets;
use common::data::movielens::MovieLens;

use super::{Dataset, Item, Step};

/// Knowledge-graph nodes with more item neighbours than this say little and are left out.
const HUB: usize = 400;

/// Loads ML-100k. The target is the next rating whatever its stars, or with `likes_only` the next
/// like.
///
/// # Errors
/// An absent asset or a damaged file.
pub fn load(assets: &Assets, likes_only: bool) -> Result<Dataset> {
    let data = MovieLens::read(&assets.folder("ml-100k")?)?;
    let mut sequences = vec![Vec::new(); data.users.len()];
    for rating in &data.ratings {
        let behaviour = match rating.stars {
            ..=2 => 0,
            3 => 1,
            _ => 2,
        };
        sequences[rating.user as usize].push(Step { item: rating.movie, behaviour });
    }
    let items = data
        .movies
        .iter()
        .map(|movie| {
            let title = match movie.year {
                Some(year) => format!("{} ({year})", movie.title),
                None => movie.title.clone(),
            };
            let text = format!("{title}. {}", movie.genres.join(", "));
            Item { id: movie.id.to_string(), title, text, image: None }
        })
        .collect();
    Ok(Dataset {
        name: "ml-100k".into(),
        items,
        users: data.users.iter().map(|user| user.id.to_string()).collect(),
        behaviours: ["dislike", "neutral", "like"].map(str::to_owned).to_vec(),
        target: likes_only.then_some(2),
        sequences,
        links: links(&data),
    })
}

/// Item–node pairs of the knowledge graph, nodes with 2 to [`HUB`] items.
fn links(data: &MovieLens) -> Vec<(u32, u32)> {
    let item_of: HashMap<&str, u32> = (0..)
        .zip(&data.movies)
        .filter_map(|(at, movie)| Some((movie.entity.as_deref()?, at)))
        .collect();
    let mut neighbours: HashMap<(&str, &str), Vec<u32>> = HashMap::new();
    for fact in &data.facts {
        for (item, node) in [(&fact.head, &fact.tail), (&fact.tail, &fact.head)] {
            if let Some(&item) = item_of.get(item.as_str()) {
                neighbours.entry((fact.relation.as_str(), node.as_str())).or_default().push(item);
            }
        }
    }
    let mut nodes: Vec<((&str, &str), Vec<u32>)> = neighbours.into_iter().collect();
    nodes.sort();
    nodes
        .into_iter()
        .map(|(_, items)| items)
        .filter(|items| (2..=HUB).contains(&items.len()))
        .zip(0..)
        .flat_map(|(items, node)| items.into_iter().map(move |item| (item, node)))
        .collect()
}

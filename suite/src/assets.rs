//! `cargo suite assets`: the pinned downloads.

use common::Result;
use common::assets::{AssetOptions, Assets, Status, console_progress};
use common::cli::CommonArgs;

/// What to do with the assets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Action {
    /// Show each one: present or not, size, licence, who needs it
    #[default]
    List,
    /// Download what is missing
    Fetch,
    /// Compare every present file with its pinned SHA-256
    Verify,
}

/// Does `action` for `ids` (see the command's help for the default) and returns a table.
pub fn execute(action: Action, ids: &[String], args: &CommonArgs) -> Result<String> {
    let assets = open(args);
    let chosen: Vec<&str> = if ids.is_empty() {
        let all = Assets::entries().iter();
        all.filter(|entry| action != Action::Fetch || entry.default).map(|entry| entry.id).collect()
    } else {
        ids.iter().map(|id| assets.entry(id).map(|entry| entry.id)).collect::<Result<_>>()?
    };
    let mut text = String::from("state\tid\tdownload\tlicence\tneeded by\n");
    let mut first_error = None;
    for id in chosen {
        let status = match action {
            Action::List => assets.status(id)?,
            Action::Verify => assets.verify(id)?,
            Action::Fetch => match assets.fetch(id) {
                Ok(status) => status,
                Err(error) => {
                    tracing::error!("{error}");
                    first_error.get_or_insert(error);
                    assets.status(id)?
                }
            },
        };
        text.push_str(&line(&status));
        if status.is_invalid() && action == Action::Verify {
            let error = common::Error::asset(
                id,
                "a file holds other bytes than pinned",
                "delete it and run `cargo suite assets fetch`",
            );
            tracing::error!("{error}");
            first_error.get_or_insert(error);
        }
    }
    match first_error {
        Some(error) => Err(error),
        None => Ok(text),
    }
}

fn open(args: &CommonArgs) -> Assets {
    let mut options = AssetOptions::from_env();
    if let Some(mirror) = &args.assets {
        options.mirror = Some(mirror.clone());
    }
    options.offline |= args.offline;
    if !args.quiet {
        options.progress = Some(console_progress(common::run::bars().clone()));
    }
    Assets::new(options)
}

fn line(status: &Status) -> String {
    let state = if status.is_invalid() {
        "invalid"
    } else if status.is_present() {
        "present"
    } else {
        "absent"
    };
    let entry = status.entry;
    let megabytes = entry.download as f64 / 1e6;
    format!(
        "{state}\t{}\t{megabytes:.1} MB\t{}\t{}\n",
        entry.id,
        entry.licence,
        entry.needed_by.join(", ")
    )
}

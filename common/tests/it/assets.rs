use common::assets::Assets;
use common::testing::asset_or_skip;

#[test]
fn the_default_set_is_found_and_verified() {
    for entry in Assets::entries().iter().filter(|entry| entry.default) {
        for file in entry.files {
            if let Some(path) = asset_or_skip(entry.id, file.name) {
                assert_eq!(path.metadata().unwrap().len(), file.size, "{}", path.display());
            }
        }
    }
}

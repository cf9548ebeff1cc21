//! Run folders: manifest, metrics, logs, lock, progress.

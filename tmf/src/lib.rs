//! Triple Modality Fusion (arXiv 2410.12228).

//! CURE (arXiv 2604.04982).

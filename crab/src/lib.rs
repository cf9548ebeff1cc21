//! CRAB (arXiv 2604.05113).

//! POAC (arXiv 2404.11589).

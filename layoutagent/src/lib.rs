//! LayoutAgent (arXiv 2509.22720).

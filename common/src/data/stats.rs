//! Statistics: bootstrap intervals, paired tests, multiple comparisons.

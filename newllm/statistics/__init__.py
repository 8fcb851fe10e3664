"""Variants, intervals, comparisons, spikes, ablations and reference losses of runs."""

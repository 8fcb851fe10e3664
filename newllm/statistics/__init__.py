"""What runs show: variants, intervals, comparisons, spikes, and what all are compared with."""

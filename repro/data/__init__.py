"""Files to one dataset: what a profile reads, how it is read, and how it is split."""

"""A run on disk: its folder, manifests and shards, and what its files prove about themselves."""

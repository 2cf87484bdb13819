"""Published models: versions and names in the store, the cache on this machine, and what model files say."""

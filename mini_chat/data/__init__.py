"""From what users bring to token shards: a file per step."""

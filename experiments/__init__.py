"""Entry points: flags -> config -> halfway -> results on disk."""

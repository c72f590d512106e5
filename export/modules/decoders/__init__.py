"""Language models with a cache: plain, with adapters, with visual experts."""

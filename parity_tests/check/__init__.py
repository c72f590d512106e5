"""A package asked, compared and judged."""

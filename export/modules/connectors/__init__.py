"""From rows of the vision encoder to rows of the decoder's width."""

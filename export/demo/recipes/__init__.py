"""How each family's demo checkpoint is sized and written in its published layout."""

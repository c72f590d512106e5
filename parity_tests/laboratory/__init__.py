"""Programs that measure or rehearse; none of them is part of the product, and no wheel carries them."""

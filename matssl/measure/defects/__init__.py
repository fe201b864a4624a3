"""The three algorithms of unet-compare on binary masks: CHAC, BubbleFinder, BBox; repaired."""

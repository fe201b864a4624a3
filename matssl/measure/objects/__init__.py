"""Objects of a class (particles, pores, bubbles): found, counted, sized, with what edges ask."""

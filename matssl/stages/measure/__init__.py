"""From masks to numbers one can sign: fractions, objects, grains, layers, by specimen."""

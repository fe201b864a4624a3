"""The one number that masks, losses, counts and pictures agree on."""

# A pixel of this value belongs to no class: it is neither learned from nor counted.
IGNORE = 255

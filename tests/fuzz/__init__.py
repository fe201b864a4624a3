"""Broken, mutated and hostile files, made from a number, against the commands.

Every case follows from its seed: ``python -m tests.fuzz.campaign --seed 17`` runs case 17 alone and
shows what it printed. A case runs in a process of its own, forked from one that has all modules.
"""

"""Dice against size and against the number of training volumes, on three data sets."""

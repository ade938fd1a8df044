"""Ready-made parts that satisfy the protocols: prices, features and labels, dataset, models.

Nothing above this room depends on them; any class with the methods of `qwf.types` can take their
place.
"""

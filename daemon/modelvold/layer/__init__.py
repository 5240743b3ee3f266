"""A layer's inside: which entries it holds, where their bytes lie, how it is cut into segments. Pure and sans-IO."""

"""`dose`: every way to steer towards a trait, at the damage of a persona prompt."""

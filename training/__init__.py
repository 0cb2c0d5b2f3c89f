"""How the demo checkpoint is made: a corpus that flite speaks, and the models of the official layout that learn it."""

"""The attentional Boltzmann machine, a density whose conditionals are one step of attention."""

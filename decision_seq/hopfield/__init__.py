"""Energy-based associative memories: Lagrangians, energies and Boltzmann machines."""

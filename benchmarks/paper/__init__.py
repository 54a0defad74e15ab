"""The findings of the SigLIP paper (arXiv:2303.15343), each tested at the size of one machine."""

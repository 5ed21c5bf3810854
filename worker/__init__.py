"""Universal Image Model Worker: any diffusion model behind one small JSON request."""

__version__ = "0.1.0"
